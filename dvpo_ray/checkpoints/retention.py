"""Which checkpoints stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """The newest ``last`` checkpoints stay, those of every ``every``-th step, and the ``best`` by held-out score."""

    last: int = 2
    every: int = 0
    best: int = 0

    def kept(self, scores: Mapping[int, float | None]) -> set[int]:
        """The steps whose checkpoints stay, of those given with their scores; one without a score is never among the best.

        Example: with ``last=1, best=1``, ``{10: 0.3, 20: 0.9, 30: None}`` keeps 20 and 30.
        """
        newest = sorted(scores)[-self.last :]
        spaced = [step for step in scores if self.every and step % self.every == 0]
        ranked = sorted((score, step) for step, score in scores.items() if score is not None)
        return {*newest, *spaced, *(step for _, step in ranked[len(ranked) - min(self.best, len(ranked)) :])}
