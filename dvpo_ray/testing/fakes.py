"""Fakes at the process border: stages that run in the test's own process, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dvpo_ray.stages import Weights
from dvpo_ray.types import (
    BucketTargets,
    Ragged,
    RolloutRequest,
    RowId,
    RowOutcome,
    ScoredBatch,
    ScorerVersion,
    ServedWeights,
    StepResult,
)


def row(name: str) -> RowId:
    """The id of a row that only its name tells from others."""
    return RowId(0, 0, name, 0)


def trained(rows: Iterable[RowId], dropped: Iterable[RowId] = ()) -> tuple[RowOutcome, ...]:
    """What a learner says of rows."""
    of = [(row, False) for row in rows] + [(row, True) for row in dropped]
    return tuple(RowOutcome(row, row.slot, {}, 0.0, 1, "stop", left) for row, left in of)


def scored_batch(lengths: Sequence[int], seed: int = 0, prefix: str = "r") -> ScoredBatch:
    """Random scored rows with the given answer lengths."""
    rng = np.random.default_rng(seed)

    def ragged(sizes: Sequence[int], low: int | None = None) -> Ragged:
        rows = [rng.integers(2, 300, n) if low is not None else rng.normal(size=n) for n in sizes]
        return Ragged.of(rows, np.int32 if low is not None else np.float32)

    return ScoredBatch(
        rows=tuple(row(f"{prefix}{i}") for i in range(len(lengths))),
        group_ids=np.arange(len(lengths)),
        prompt_ids=ragged([4 + i % 3 for i in range(len(lengths))], 2),
        response_ids=ragged(lengths, 2),
        log_probs=ragged(lengths),
        versions=Ragged.of([np.zeros(n) for n in lengths], np.int32),
        values=ragged([n + 1 for n in lengths]),
        ref_log_probs=ragged(lengths),
        action_mask=Ragged.of([np.ones(n) for n in lengths], np.bool_),
        end_states=tuple("stop" for _ in lengths),
    )


@dataclass(frozen=True)
class FakeWeights:
    """A version without tensors."""

    version: int
    count: int = 0

    def bucket(self, index: int, receivers: BucketTargets) -> Any:
        """There is none."""
        raise IndexError(index)


class IdleStages:
    """What stages do that neither lose, keep nor save anything."""

    def save(self, folder: str, facts: dict[str, object]) -> None:
        """Saves nothing."""

    def given_up(self, requests: Sequence[RolloutRequest]) -> list[RowId]:
        """None."""
        return []

    def cancel(self) -> None:
        """Nothing is under way."""

    def draining(self) -> set[str]:
        """No machine is taken away."""
        return set()

    def begin_checkpoint(self, folder: str) -> None:
        """Writes nothing."""

    def end_checkpoint(self) -> dict[str, str]:
        """No files."""
        return {}

    def load_checkpoint(self, folder: str) -> None:
        """Nothing to load."""

    def restart(self) -> None:
        """Nothing to start."""

    def weights(self, version: int) -> FakeWeights:
        """Only the number."""
        return FakeWeights(version)


class FakeStages(IdleStages):
    """All three stages in one; records what the driver asked for."""

    def __init__(self, value_hashes: Sequence[str] = ("sealed", "sealed")) -> None:
        self.calls: list[str] = []
        self.version = 0
        self.betas: list[float] = []
        self._hashes = iter(value_hashes)
        self.rollouts = self.scorers = self.learner = self

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[RowId]:
        """Answers are just row ids."""
        self.calls.append("generate")
        yield from (request.row for request in requests)

    def score(self, answers: Iterable[RowId], version: ScorerVersion | None = None) -> Iterator[list[RowId]]:
        """Batches are lists of row ids."""
        rows = list(answers)
        self.calls.append("score")
        yield rows

    def wait(self, handles: Sequence[list[RowId]]) -> None:
        """Everything is scored at once."""

    def fetch(self, handles: Iterable[ScoredBatch]) -> list[ScoredBatch]:
        """Handles are the data."""
        return list(handles)

    def value_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        """The next hash of the list given."""
        return {"value": next(self._hashes)}

    def step(self, step: int, beta: float, scored: Iterable[list[RowId]]) -> StepResult:
        """Trains nothing; reports a KL of 12 nats an answer."""
        self.calls.append("learn")
        self.betas.append(beta)
        self.version += 1
        rows = trained(row for batch in scored for row in batch)
        return StepResult(step, self.version, rows, {"kl/per_answer": 12.0})

    def sync(self, weights: Weights) -> ServedWeights:
        """Counts versions."""
        self.calls.append(f"sync {weights.version}")
        return ServedWeights(weights.version, "payload", "checksum", 0.0, 0)


class FakeEngines:
    """Rollout actors, as far as a trainer knows them."""

    source: Callable[[], Weights] | None = None
