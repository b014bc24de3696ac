"""The types that cross a process border: what stages hand to each other.

Arrays are NumPy, ragged (one flat array and its row lengths), never padded, so Ray moves them without copying.
Everything checks itself when built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one flat array.

    Example: rows [5, 6] and [7] are ``flat=[5, 6, 7]``, ``lengths=[2, 1]``.
    """

    flat: np.ndarray
    lengths: np.ndarray

    def __post_init__(self) -> None:
        if self.flat.ndim != 1 or self.lengths.ndim != 1 or int(self.lengths.sum()) != self.flat.size:
            raise ValueError(f"lengths add up to {int(self.lengths.sum())}, flat has {self.flat.shape}")
        if self.lengths.size and (self.lengths.dtype.kind not in "iu" or self.lengths.min() < 0):
            raise ValueError(f"lengths are counts, got {self.lengths.dtype} from {self.lengths.min()}")

    @classmethod
    def of(cls, rows: Sequence[Any], dtype: Any) -> Ragged:
        """From a list of rows, each a sequence or array."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        flat = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        return cls(flat, np.array([a.size for a in arrays], dtype=np.int64))

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Ragged:
        """Rows of all parts, in order."""
        return cls(np.concatenate([p.flat for p in parts]), np.concatenate([p.lengths for p in parts]))

    def __len__(self) -> int:
        return self.lengths.size

    def rows(self) -> list[np.ndarray]:
        """One view per row."""
        return np.split(self.flat, np.cumsum(self.lengths)[:-1]) if len(self) else []

    def take(self, index: Sequence[int]) -> Ragged:
        """Selected rows, in the order of ``index``."""
        ends = np.cumsum(self.lengths)
        return Ragged.of([self.flat[ends[i] - self.lengths[i] : ends[i]] for i in index], self.flat.dtype)


@dataclass(frozen=True)
class PlainSampling:
    """So many tokens, whatever they are, from the whole distribution at a temperature above 0."""

    tokens: int
    temperature: float


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate. Example: ``GenerationRequest("3/p17/0", [1, 9, 4], seed=81)``: step 3, prompt p17, answer 0.

    ``plain`` is for tokens that are no answer: it stands in for the sampling of the recipe.
    """

    row_id: str
    prompt_ids: tuple[int, ...]
    seed: int
    plain: PlainSampling | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"{self.row_id}: a prompt needs at least one token")


@dataclass(frozen=True)
class Answer:
    """One finished answer of T tokens, with what the engine knew when it sampled them.

    ``log_probs`` [T] are of the distribution sampled from (temperature and top-p included), ``versions`` [T] the weight
    version of each token, ``finish_reason`` is ``stop`` (ended by itself) or ``length`` (cut at the limit).
    """

    row_id: str
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    log_probs: np.ndarray
    versions: np.ndarray
    finish_reason: str

    def __post_init__(self) -> None:
        sizes = {self.response_ids.size, self.log_probs.size, self.versions.size}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"{self.row_id}: answer needs T >= 1 tokens, log-probs and versions; got sizes {sorted(sizes)}")


@dataclass(frozen=True)
class ScoredBatch:
    """Answers with frozen values and reference log-probs: what a learner takes.

    For row i with T_i response tokens: ``values`` has T_i + 1 (q_0..q_T), all other response arrays T_i. ``rewards`` has one
    score of the whole answer for each reward of the recipe, unweighted.
    """

    row_ids: tuple[str, ...]
    prompt_ids: Ragged
    response_ids: Ragged
    log_probs: Ragged
    versions: Ragged
    values: Ragged
    ref_log_probs: Ragged
    rewards: Ragged
    finish_reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = self.response_ids.lengths
        if self.rewards.lengths.size != lengths.size or len(set(self.rewards.lengths.tolist())) > 1:
            raise ValueError(f"rewards of {self.rewards.lengths.size} rows of {set(self.rewards.lengths.tolist())} scores")
        same = all(np.array_equal(part.lengths, lengths) for part in (self.log_probs, self.versions, self.ref_log_probs))
        counts = {len(self.row_ids), len(self.finish_reasons), len(self.prompt_ids), len(lengths)}
        if not same or not np.array_equal(self.values.lengths, lengths + 1) or len(counts) != 1:
            raise ValueError(f"rows do not fit together: {len(self.row_ids)} ids, {lengths.size} answers")

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def tokens(self) -> int:
        """Response tokens of all rows."""
        return int(self.response_ids.lengths.sum())

    def groups(self) -> np.ndarray:
        """A number for each row that rows of equal prompts share, int64 [B]."""
        numbers: dict[bytes, int] = {}
        return np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in self.prompt_ids.rows()], dtype=np.int64)

    def sequences(self, index: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Prompts and answers of selected rows, in the order of ``index``."""
        return self.prompt_ids.take(index).rows(), self.response_ids.take(index).rows()

    def in_order(self) -> ScoredBatch:
        """Rows sorted by id: answers arrive in any order, training must not depend on it."""
        return self.take(sorted(range(len(self)), key=lambda i: self.row_ids[i]))

    def take(self, index: Sequence[int]) -> ScoredBatch:
        """Selected rows, in the order of ``index``."""
        ragged = {name: getattr(self, name).take(index) for name in RAGGED_FIELDS}
        names: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in index) for name in NAME_FIELDS}
        return ScoredBatch(**ragged, **names)

    @classmethod
    def concat(cls, parts: Sequence[ScoredBatch]) -> ScoredBatch:
        """Rows of all parts, in order."""
        ragged: dict[str, Any] = {name: Ragged.concat([getattr(p, name) for p in parts]) for name in RAGGED_FIELDS}
        names: dict[str, Any] = {
            name: tuple(v for p in parts for v in getattr(p, name)) for name in ("row_ids", "finish_reasons")
        }
        return cls(**ragged, **names)


NAME_FIELDS = ("row_ids", "finish_reasons")
RAGGED_FIELDS = ("prompt_ids", "response_ids", "log_probs", "versions", "values", "ref_log_probs", "rewards")


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is called, its type and shape. Example: ``TensorSpec("lm_head.weight", "bfloat16", (49152, 576))``."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Any) -> TensorSpec:
        """That of a torch tensor; of a parameter sharded by ZeRO-3 the whole one's."""
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(getattr(tensor, "ds_shape", tensor.shape)))


@dataclass(frozen=True)
class Adapters:
    """Says of a bucket that it holds LoRA matrices, to be merged ``scale`` times into the base weights with this sha256.

    Example: ``Adapters(2.0, "5f70bf18...")`` (see ``dvpo_ray.models.lora`` and ``weights_sha256``).
    """

    scale: float
    base_sha256: str


@dataclass(frozen=True)
class BucketTargets:
    """The engines that a bucket is for, by name, each of ``workers`` processes; ``attempt`` counts how often it was sent."""

    engines: tuple[str, ...]
    workers: int
    attempt: int = 0


@dataclass(frozen=True)
class Channel:
    """Where a bucket is broadcast: by rank 0 of the ``size`` processes that meet at ``address``:``port``.

    Every channel has a ``name`` of its own: ports are used again.
    """

    name: str
    backend: str
    address: str
    port: int
    size: int
    timeout_s: float


@dataclass(frozen=True)
class WeightBucket:
    """Some tensors of one weight version on their way to the engines: bucket ``index`` of ``count``.

    ``tensors`` are in the order in which they lie. The bytes are in ``data`` [bytes] (uint8), come through ``channel``, or lie
    in the shared memory that ``path`` names on the learner's node. Without ``adapters`` the tensors are the weights themselves.
    """

    version: int
    index: int
    count: int
    tensors: tuple[TensorSpec, ...]
    bytes: int
    digest: str
    path: str = ""
    data: np.ndarray | None = None
    channel: Channel | None = None
    adapters: Adapters | None = None

    def __str__(self) -> str:
        return f"bucket {self.index + 1} of {self.count} of weights {self.version}"


@dataclass(frozen=True)
class ServedWeights:
    """What an engine says when it serves a version: the digest of what it was sent and of what it holds, for how many seconds
    it loaded instead of generating, and how many bytes it was sent."""

    version: int
    payload: str
    checksum: str
    seconds: float
    bytes: int


@dataclass(frozen=True)
class EngineLeftovers:
    """What an engine's processes leave behind on their node when they are killed: processes (id and start time), names of files
    in shared memory, and paths of temporary folders with sockets."""

    processes: tuple[tuple[int, float], ...] = ()
    files: tuple[str, ...] = ()
    sockets: tuple[str, ...] = ()

    def __or__(self, other: EngineLeftovers) -> EngineLeftovers:
        return EngineLeftovers(
            tuple(sorted({*self.processes, *other.processes})),
            tuple(sorted({*self.files, *other.files})),
            tuple(sorted({*self.sockets, *other.sockets})),
        )


@dataclass(frozen=True)
class StepResult:
    """What one learner step did.

    ``version`` is that of the weights it made, ``metrics`` are plain floats; ``row_ids`` the rows trained and ``dropped_ids``
    those found too old, in no particular order.
    """

    step: int
    version: int
    row_ids: tuple[str, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    dropped_ids: tuple[str, ...] = ()
