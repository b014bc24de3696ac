"""The types that cross a process border: what stages hand to each other.

Arrays are NumPy, ragged (one flat array and its row lengths), never padded, so Ray moves them without copying.
Everything checks itself when built.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
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


@dataclass(frozen=True, order=True)
class RowId:
    """The name of a row. Example: ``RowId(3, 17, "p5", 0)`` is answer 0 to prompt p5, which stands at place 17 of the order in
    which a run visits its prompts and is due in step 3; as text ``3/17:p5/0``.

    Rows that are not trained on say in ``use`` what they are for: ``RowId(0, 4, "p5", 1, "eval")`` is ``eval/4:p5/1``.
    """

    step: int
    slot: int
    prompt: str
    answer: int
    use: str = ""

    def __str__(self) -> str:
        return f"{self.use or self.step}/{self.slot}:{self.prompt}/{self.answer}"

    @classmethod
    def parse(cls, text: str) -> RowId:
        """The id that a text stands for.

        Raises:
            ValueError: it stands for none.
        """
        found = re.fullmatch(r"(?:(\d{1,15})|([a-z]+))/(\d{1,15}):(.*)/(\d{1,15})", text, re.DOTALL)
        if found is None:
            raise ValueError(f"'{text}' is no row id: expected STEP/SLOT:PROMPT/ANSWER")
        step, use, slot, prompt, answer = found.groups()
        return cls(int(step or 0), int(slot), prompt, int(answer), use or "")


@dataclass(frozen=True)
class PlainSampling:
    """So many tokens, whatever they are, from the whole distribution at a temperature above 0."""

    tokens: int
    temperature: float


@dataclass(frozen=True)
class Written:
    """Tokens that the policy wrote earlier, of an answer that is to go on: ids, log-probs and weight versions, each [n]."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    versions: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.log_probs) == len(self.versions):
            raise ValueError(f"{len(self.ids)} tokens with {len(self.log_probs)} log-probs and {len(self.versions)} versions")


@dataclass(frozen=True)
class RolloutRequest:
    """One answer to generate. Example: ``RolloutRequest(RowId(3, 17, "p5", 0), [1, 9, 4], seed=81, group_id=17)``.

    Attributes:
        row: its name.
        prompt_ids: tokens before the answer, at least one.
        seed: of the sampling.
        group_id: what it is compared within; rows of one group have the same.
        forced_ids: tokens with which the answer begins, which the policy did not choose and is not trained on.
        resumed: tokens that the policy wrote before, which it is trained on like those to come.
        max_new_tokens: most tokens of the answer, forced and resumed ones included; None leaves it to the recipe.
        environment: settings of the environment that replies to the policy (``config.environments``); None for one answer alone.
        candidate: which of several perturbed policies is to answer, for learners without gradients.
        columns: what else the row of the dataset holds, for rewards and environments.
        plain: for tokens that are no answer: it stands in for the sampling of the recipe.
    """

    row: RowId
    prompt_ids: tuple[int, ...]
    seed: int
    group_id: int = 0
    forced_ids: tuple[int, ...] = ()
    resumed: Written | None = None
    max_new_tokens: int | None = None
    environment: Any = None
    candidate: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    plain: PlainSampling | None = None

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise ValueError(f"{self.row}: a prompt needs at least one token")


@dataclass(frozen=True)
class Trajectory:
    """What came of a request: T tokens after the prompt, most of them the policy's own.

    Example: to a question of 3 tokens the policy wrote 2 tokens, a tool replied with 1, and the policy ended with 1 more:
    ``response_ids=[7, 8, 21, 1]``, ``action_mask=[True, True, False, True]``, ``turns=(0, 3)``.

    Attributes:
        row, group_id, columns: as in the request.
        prompt_ids: [P].
        response_ids: [T].
        action_mask: which tokens the policy wrote [T]; the others (forced, or an environment's) carry no loss.
        log_probs: of the distribution sampled from, temperature and filters included; 0 where it was not sampled [T].
        versions: the weight version of each token; of tokens that were not sampled that of the next that was, or the last [T].
        end_state: ``stop`` (ended by itself), ``length`` (cut at the limit), or what an environment says.
        turns: where each of the policy's turns begins.
        rewards: of tokens, from an environment [T]; None without one.
    """

    row: RowId
    prompt_ids: np.ndarray
    response_ids: np.ndarray
    log_probs: np.ndarray
    versions: np.ndarray
    end_state: str
    group_id: int = 0
    action_mask: np.ndarray = None  # type: ignore[assignment]
    turns: tuple[int, ...] = (0,)
    rewards: np.ndarray | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.action_mask is None:
            object.__setattr__(self, "action_mask", np.ones(self.response_ids.size, dtype=bool))
        arrays = [self.response_ids, self.log_probs, self.versions, self.action_mask]
        sizes = {array.size for array in (arrays if self.rewards is None else [*arrays, self.rewards])}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"{self.row}: needs T >= 1 tokens, log-probs, versions and masks; got sizes {sorted(sizes)}")
        if not self.action_mask.any():
            raise ValueError(f"{self.row}: the policy wrote none of its {self.response_ids.size} tokens")


@dataclass(frozen=True)
class ActionTokens:
    """The tokens of scored rows that the policy wrote: N_i of row i.

    ``values`` has N_i + 1: the value before each of these tokens, and after all. ``rewards`` are named: 1 or N_i numbers a row,
    or none where a reward abstains; what was given to a token that the policy did not write went to the last before it that it
    did.
    """

    log_probs: Ragged
    versions: Ragged
    ref_log_probs: Ragged
    values: Ragged
    rewards: Mapping[str, Ragged]

    @property
    def lengths(self) -> np.ndarray:
        """N_i of each row [B]."""
        return self.log_probs.lengths


@dataclass(frozen=True)
class ScoredBatch:
    """Trajectories with frozen values and reference log-probs: what a learner takes.

    For row i with T_i tokens after its prompt: ``values`` has T_i + 1 (q_0..q_T), all other response arrays T_i. ``channels`` are
    the unweighted rewards by name: 1 number a row (of the whole answer), T_i (of its tokens), or none (it abstained).
    ``scorer_version`` counts the value models of the run that scored them.
    """

    rows: tuple[RowId, ...]
    group_ids: np.ndarray
    prompt_ids: Ragged
    response_ids: Ragged
    action_mask: Ragged
    log_probs: Ragged
    versions: Ragged
    values: Ragged
    ref_log_probs: Ragged
    end_states: tuple[str, ...]
    channels: Mapping[str, Ragged] = field(default_factory=dict)
    scorer_version: int = 0

    def __post_init__(self) -> None:
        lengths = self.response_ids.lengths
        parts = (self.action_mask, self.log_probs, self.versions, self.ref_log_probs)
        same = all(np.array_equal(part.lengths, lengths) for part in parts)
        counts = {len(self.rows), len(self.end_states), len(self.prompt_ids), len(lengths), self.group_ids.size}
        if not same or not np.array_equal(self.values.lengths, lengths + 1) or len(counts) != 1:
            raise ValueError(f"rows do not fit together: {len(self.rows)} ids, {lengths.size} answers")
        for name, channel in self.channels.items():
            sizes = channel.lengths
            if sizes.size != lengths.size or not np.all((sizes == lengths) | (sizes <= 1)):
                raise ValueError(f"channel '{name}': each row has 0, 1 or as many numbers as its answer has tokens")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens that the policy wrote, of all rows."""
        return int(self.action_mask.flat.sum())

    @cached_property
    def actions(self) -> ActionTokens:
        """The tokens that the policy wrote."""
        mask = self.action_mask.flat.astype(bool)
        if mask.all():
            return ActionTokens(self.log_probs, self.versions, self.ref_log_probs, self.values, self.channels)
        masks = self.action_mask.rows()
        counts = np.array([int(row.sum()) for row in masks], dtype=np.int64)
        log_probs, versions, references = (
            Ragged(part.flat[mask], counts) for part in (self.log_probs, self.versions, self.ref_log_probs)
        )
        # The value before a token that the policy wrote stands at the token's own place.
        states = np.concatenate([np.append(row.astype(bool), True) for row in masks])
        values = Ragged(self.values.flat[states], counts + 1)
        rewards = {name: _of_actions(channel, masks) for name, channel in self.channels.items()}
        return ActionTokens(log_probs, versions, references, values, rewards)

    def channel(self, name: str) -> Ragged:
        """The numbers of a reward; none of any row where there is no such reward."""
        return self.channels.get(name, Ragged(np.empty(0, np.float32), np.zeros(len(self), dtype=np.int64)))

    def sequences(self, index: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Prompts, answers and their action masks of selected rows, in the order of ``index``."""
        return self.prompt_ids.take(index).rows(), self.response_ids.take(index).rows(), self.action_mask.take(index).rows()

    def in_order(self) -> ScoredBatch:
        """Rows sorted by id: answers arrive in any order, training must not depend on it."""
        return self.take(sorted(range(len(self)), key=lambda i: str(self.rows[i])))

    def take(self, index: Sequence[int]) -> ScoredBatch:
        """Selected rows, in the order of ``index``."""
        ragged: dict[str, Any] = {name: getattr(self, name).take(index) for name in RAGGED_FIELDS}
        return ScoredBatch(
            **ragged,
            rows=tuple(self.rows[i] for i in index),
            group_ids=self.group_ids[list(index)],
            end_states=tuple(self.end_states[i] for i in index),
            channels={name: channel.take(index) for name, channel in self.channels.items()},
            scorer_version=self.scorer_version,
        )

    @classmethod
    def concat(cls, parts: Sequence[ScoredBatch]) -> ScoredBatch:
        """Rows of all parts, in order; a channel that a part does not have abstains there.

        Raises:
            ValueError: they were scored by other versions of the value model.
        """
        versions = {part.scorer_version for part in parts}
        if len(versions) != 1:
            raise ValueError(f"rows of one step were scored by value models {sorted(versions)}")
        names = dict.fromkeys(name for part in parts for name in part.channels)
        ragged: dict[str, Any] = {name: Ragged.concat([getattr(p, name) for p in parts]) for name in RAGGED_FIELDS}
        return cls(
            **ragged,
            rows=tuple(row for part in parts for row in part.rows),
            group_ids=np.concatenate([part.group_ids for part in parts]),
            end_states=tuple(state for part in parts for state in part.end_states),
            channels={name: Ragged.concat([part.channel(name) for part in parts]) for name in names},
            scorer_version=versions.pop(),
        )


RAGGED_FIELDS = ("prompt_ids", "response_ids", "action_mask", "log_probs", "versions", "values", "ref_log_probs")


def _of_actions(channel: Ragged, masks: Sequence[np.ndarray]) -> Ragged:
    """A channel's numbers for the tokens that the policy wrote; those of whole answers as they are."""
    found = []
    for numbers, mask in zip(channel.rows(), masks, strict=True):
        if numbers.size <= 1:
            found.append(numbers)
            continue
        summed = np.zeros(int(mask.sum()), dtype=numbers.dtype)
        np.add.at(summed, np.maximum(np.cumsum(mask) - 1, 0), numbers)
        found.append(summed)
    return Ragged.of(found, channel.flat.dtype)


@dataclass(frozen=True)
class RowOutcome:
    """What became of a row: what plans, scorer refreshes and viewers learn from.

    ``rewards`` are unweighted, by name, summed over tokens, None where the reward abstained; ``value`` is the last frozen value,
    ``tokens`` the length of the answer; ``dropped`` rows were too old to be trained on.
    """

    row: RowId
    group_id: int
    rewards: Mapping[str, float | None]
    value: float
    tokens: int
    end_state: str
    dropped: bool = False


def outcomes(scored: ScoredBatch, dropped: bool = False) -> tuple[RowOutcome, ...]:
    """What became of scored rows."""
    numbers = {name: channel.rows() for name, channel in scored.channels.items()}
    values, lengths = scored.values.rows(), scored.response_ids.lengths
    return tuple(
        RowOutcome(
            row=row,
            group_id=int(scored.group_ids[i]),
            rewards={name: float(rows[i].sum()) if rows[i].size else None for name, rows in numbers.items()},
            value=float(values[i][-1]),
            tokens=int(lengths[i]),
            end_state=scored.end_states[i],
            dropped=dropped,
        )
        for i, row in enumerate(scored.rows)
    )


@dataclass(frozen=True)
class ScorerVersion:
    """A value model that takes the place of the one before: the ``number``-th of a run (0 is the one that the recipe names), in a
    sealed folder, with the hash of its parameters."""

    number: int
    folder: str
    parameters_sha256: str


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is called, its type and shape. Example: ``TensorSpec("lm_head.weight", "bfloat16", (49152, 576))``."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Any) -> TensorSpec:
        """That of a torch tensor."""
        return cls(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


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

    ``version`` is that of the weights it made, ``metrics`` are plain floats; ``rows`` are those trained and those dropped because
    they were too old, in no particular order.
    """

    step: int
    version: int
    rows: tuple[RowOutcome, ...]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def trained(self) -> list[RowId]:
        """The rows that were trained on."""
        return [outcome.row for outcome in self.rows if not outcome.dropped]

    @property
    def dropped(self) -> list[RowId]:
        """The rows that were not."""
        return [outcome.row for outcome in self.rows if outcome.dropped]
