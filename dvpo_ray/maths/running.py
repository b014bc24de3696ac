"""Mean and spread of numbers that come in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of all numbers so far (Chan, Golub and LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation, 0 before the second number."""
        return math.sqrt(self.squares / self.count) if self.count > 1 else 0.0

    def with_batch(self, numbers: Sequence[float] | np.ndarray) -> RunningMoments:
        """The moments of these numbers and all before."""
        batch = np.asarray(numbers, dtype=np.float64)
        if not batch.size:
            return self
        total = self.count + batch.size
        apart = float(batch.mean()) - self.mean
        squares = self.squares + float(((batch - batch.mean()) ** 2).sum()) + apart**2 * self.count * batch.size / total
        return RunningMoments(total, self.mean + apart * batch.size / total, squares)
