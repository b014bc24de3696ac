"""Rows of a step that is trained while its last answers are still generated."""

from __future__ import annotations

import time

from dvpo_ray.types import RowOutcome, ScoredBatch


class OpenStep:
    """Collects scored rows and gives them out as soon as they fill micro-batches; ``sums`` is the caller's to add to.

    Some rows are always held back, so that the step's last backward pass can be told apart when the step ends: sharded
    optimizers reduce gradients in it.
    """

    def __init__(self, step: int, tokens_to_fill: int) -> None:
        self.step = step
        self.began = time.monotonic()
        self.dropped: list[RowOutcome] = []
        self.sums: dict[str, float] = {}
        self._tokens_to_fill = tokens_to_fill
        self._all: list[ScoredBatch] = []
        self._waiting: list[ScoredBatch] = []

    def add(self, batch: ScoredBatch) -> ScoredBatch | None:
        """Take rows in; returns rows to work on now, if those that waited are enough."""
        if not len(batch):
            return None
        ready = self._waiting if sum(map(_tokens, self._waiting)) >= self._tokens_to_fill else []
        self._waiting = [batch] if ready else [*self._waiting, batch]
        self._all.append(batch)
        return ScoredBatch.concat(ready) if ready else None

    def rest(self) -> ScoredBatch | None:
        """The rows held back, or None when the step has no rows."""
        return ScoredBatch.concat(self._waiting) if self._waiting else None

    def rows(self) -> ScoredBatch:
        """All rows of the step so far."""
        return ScoredBatch.concat(self._all)


def _tokens(batch: ScoredBatch) -> int:
    return int((batch.prompt_ids.lengths + batch.response_ids.lengths).sum())
