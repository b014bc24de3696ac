"""What the driver knows of the stages: Protocols and opaque handles.

A handle stands for data that lives elsewhere (a Ray object reference, or the object itself in tests); the driver passes
handles on and never looks inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from dvpo_ray.errors import RowsLostError
from dvpo_ray.types import BucketTargets, RolloutRequest, RowId, ScoredBatch, ScorerVersion, ServedWeights, StepResult

Handle = Any
T = TypeVar("T")
# Times that rows are asked for when a node is lost with them.
ATTEMPTS = 3


def retry_lost_rows(ask: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """What ``ask`` returns; it is called again when rows are lost with a node, ``attempts`` times in all.

    Raises:
        RowsLostError: they were lost every time.
    """
    for left in reversed(range(attempts)):
        try:
            return ask()
        except RowsLostError:
            if not left:
                raise
    raise AssertionError("at least one attempt")


class Weights(Protocol):
    """One version of the policy's weights, to be had a bucket at a time."""

    @property
    def version(self) -> int:
        """The number of steps trained."""
        ...

    @property
    def count(self) -> int:
        """How many buckets there are."""
        ...

    def bucket(self, index: int, receivers: BucketTargets) -> Handle:
        """A bucket (``WeightBucket``) for these engines; it may be asked for again, and the one before is then gone."""
        ...


class Rollouts(Protocol):
    """Generates answers. Consumes requests, produces one answer handle each, as they finish."""

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Handle]:
        """Waits for engines; raises ActorFailedError when one dies or misses a deadline."""
        ...

    def given_up(self, requests: Sequence[RolloutRequest]) -> list[RowId]:
        """Ids of those rows that will never be answered, once ``generate`` has ended."""
        ...

    def cancel(self) -> None:
        """Let every ``generate`` end now; what it has not given yet is not wanted. Until the next ``sync``."""
        ...

    def sync(self, weights: Weights) -> ServedWeights:
        """Bring every engine to these weights; returns what the slowest says, whose checksum is that of all."""
        ...


class Scorers(Protocol):
    """Scores answers. Consumes answer handles, produces scored-batch handles as micro-batches fill."""

    def score(self, answers: Iterable[Handle], version: ScorerVersion | None = None) -> Iterator[Handle]:
        """Waits for answers; a batch is sent off as soon as it is full, the last one when answers end. Values are those of the
        recipe's value model, or of a later ``version``."""
        ...

    def wait(self, handles: Sequence[Handle]) -> None:
        """Waits until these batches are scored; raises ActorFailedError when a scorer misses its deadline."""
        ...

    def fetch(self, handles: Iterable[Handle]) -> list[ScoredBatch]:
        """The data behind handles."""
        ...

    def value_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        """The sha256 of the parameters of each frozen model, as every replica has them: of the value model, or of a later
        ``version``, under ``value``, of reward models under their names.

        Raises:
            ModelError: the version is not the model that was announced.
        """
        ...


class Checkpointing(Protocol):
    """Has a state that can be checkpointed."""

    def begin_checkpoint(self, folder: str) -> None:
        """Start writing the learner's state into a folder; returns at once."""
        ...

    def end_checkpoint(self) -> dict[str, str]:
        """Waits until it is written; returns the sha256 of every file. Raises CheckpointError when it could not be."""
        ...

    def load_checkpoint(self, folder: str) -> None:
        """Go on from a verified checkpoint."""
        ...


class Restarting(Protocol):
    """Can be started again."""

    def restart(self) -> None:
        """Start all ranks anew, on the base model; raises LearnerLostError when one of the new ones is lost."""
        ...


class Learner(Checkpointing, Restarting, Protocol):
    """Trains the policy. Every call raises LearnerLostError when a rank died or hangs."""

    def step(self, step: int, beta: float, scored: Iterable[Handle]) -> StepResult:
        """Waits for scored batches as they come; returns after the update."""
        ...

    def weights(self, version: int) -> Weights:
        """The weights as they are now, under a version number."""
        ...

    def save(self, folder: str, facts: dict[str, object]) -> None:
        """Write the policy as a Hugging Face folder."""
        ...


class Stages(Protocol):
    """All stages of a run."""

    def draining(self) -> set[str]:
        """Which of ``learner`` and ``driver`` (this process) are on machines that are about to be taken away."""
        ...

    @property
    def rollouts(self) -> Rollouts:
        """Who generates."""
        ...

    @property
    def scorers(self) -> Scorers:
        """Who scores."""
        ...

    @property
    def learner(self) -> Learner:
        """Who trains."""
        ...
