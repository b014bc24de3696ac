"""What trainers share that learn in the driver's own process, with parameters that are NumPy arrays."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dvpo_ray.errors import CheckpointError
from dvpo_ray.io.digests import hash_in_memory
from dvpo_ray.learning.trainer import Engines, TrainerContext
from dvpo_ray.maths.losses import kl_k3
from dvpo_ray.stages import Handle
from dvpo_ray.types import BucketTargets, ScoredBatch, StepResult, TensorSpec, WeightBucket, outcomes

STATE = "trainer.npz"


@dataclass(frozen=True)
class ArrayWeights:
    """A version of weights as it was when it was asked for: a bucket for each array."""

    version: int
    arrays: tuple[tuple[str, np.ndarray], ...]

    @property
    def count(self) -> int:
        """How many buckets there are."""
        return len(self.arrays)

    def bucket(self, index: int, receivers: BucketTargets) -> WeightBucket:
        """A bucket, its bytes within."""
        name, array = self.arrays[index]
        data = array.reshape(-1).view(np.uint8)
        spec = TensorSpec(name, str(array.dtype), array.shape)
        return WeightBucket(self.version, index, self.count, (spec,), data.nbytes, hash_in_memory(data), data=data)


class LocalTrainer(ABC):
    """A trainer whose subclass says how it begins, learns and is saved, and keeps all that it knows in ``parameters``.

    Attributes:
        parameters: arrays by name, those that engines load under their names; a checkpoint holds all of them.
    """

    parameters: dict[str, np.ndarray]

    def __init__(self, context: TrainerContext) -> None:
        self.context = context
        self._busy = 0.0
        self._newest: ArrayWeights | None = None
        self._written: dict[str, str] = {}
        self.parameters = self.initial()

    @abstractmethod
    def initial(self) -> dict[str, np.ndarray]:
        """The parameters before the first step."""

    @abstractmethod
    def update(self, step: int, beta: float, scored: ScoredBatch) -> Mapping[str, float]:
        """Learn from a step's rows, which are sorted by their ids; returns metrics."""

    @abstractmethod
    def log_probs(self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
        """Log-probs of the tokens of responses by the parameters as they are, each [T]."""

    @abstractmethod
    def save(self, folder: str, facts: dict[str, object]) -> None:
        """Write the policy into a folder."""

    def served(self) -> dict[str, np.ndarray]:
        """The arrays that engines are given; all parameters, unless a subclass keeps others beside them."""
        return self.parameters

    def step(self, step: int, beta: float, scored: Iterable[Handle]) -> StepResult:
        """Wait for a step's rows and learn from all of them."""
        rows = ScoredBatch.concat(self.context.fetch(list(scored))).in_order()
        began = time.monotonic()
        metrics = self._measured(rows)
        metrics |= self.update(step, beta, rows)
        self._busy += time.monotonic() - began
        return StepResult(step, step + 1, outcomes(rows), metrics)

    def _measured(self, scored: ScoredBatch) -> dict[str, float]:
        """How far the rows are from the reference and from the parameters before the update, in nats."""
        prompts, responses, masks = scored.sequences(range(len(scored)))
        own = self.log_probs(prompts, responses, self.context.policy.rollout.temperature)
        actions = scored.actions
        current = np.concatenate([one[mask.astype(bool)] for one, mask in zip(own, masks, strict=True)])
        to_reference = np.add.reduceat(actions.log_probs.flat - actions.ref_log_probs.flat, _starts(actions.lengths))
        gap = kl_k3(torch.from_numpy(actions.log_probs.flat), torch.from_numpy(current))
        return {
            "kl/per_answer": float(to_reference.mean()),
            "gap/abs_log_prob": float(np.abs(current - actions.log_probs.flat).mean()),
            "gap/kl_k3": float(gap.mean()),
        }

    def weights(self, version: int) -> ArrayWeights:
        """The parameters as they are now, under a version number."""
        self._newest = ArrayWeights(version, tuple((name, array.copy()) for name, array in self.served().items()))
        return self._newest

    def connect(self, rollouts: Engines) -> None:
        """Give the engines the weights of the newest step from now on."""
        # An engine may come back while an update is under way: it gets what the others have.
        rollouts.source = lambda: self._newest or self.weights(0)

    def begin_checkpoint(self, folder: str) -> None:
        """Write all parameters."""
        path = Path(folder) / STATE
        np.savez(path, allow_pickle=False, **self.parameters)
        self._written = {STATE: hashlib.sha256(path.read_bytes()).hexdigest()}

    def end_checkpoint(self) -> dict[str, str]:
        """The sha256 of the file that was written."""
        return self._written

    def load_checkpoint(self, folder: str) -> None:
        """Go on with the parameters of a checkpoint.

        Raises:
            CheckpointError: it holds others than these.
        """
        with np.load(Path(folder) / STATE, allow_pickle=False) as found:
            parameters = {name: found[name] for name in found.files}
        shapes = [{name: array.shape for name, array in one.items()} for one in (parameters, self.parameters)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"checkpoint '{folder}' holds parameters of shapes {shapes[0]}, this trainer has {shapes[1]}")
        self.parameters = parameters

    def restart(self) -> None:
        """Go back to the first parameters."""
        self.parameters = self.initial()

    def wait_ready(self) -> None:  # noqa: B027
        """It is ready when it is made."""

    def draining(self) -> bool:
        """It is where the driver is."""
        return False

    def doubts(self) -> list[str]:
        """There is no node of its own to doubt."""
        return []

    def busy_seconds(self) -> float:
        """Time in which it learned, in seconds."""
        return self._busy

    def stop(self) -> None:  # noqa: B027
        """It has no processes."""


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths
