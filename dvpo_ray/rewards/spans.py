"""Rewards of the places in an answer where a regular expression is found."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from dvpo_ray.config.rewards import SpanReward
from dvpo_ray.rewards.base import RewardRow, Score


class SpanChannel:
    """A number for the token in which each find ends, 0 for all others."""

    def __init__(self, settings: SpanReward, name: str) -> None:
        self._pattern = re.compile(settings.pattern)
        self._reward = settings.reward

    async def __call__(self, rows: Sequence[RewardRow]) -> Sequence[Score]:
        """T numbers for each row; finds of no characters do not count."""
        return [self._of_tokens(row) for row in rows]

    def _of_tokens(self, row: RewardRow) -> list[float]:
        found = np.zeros(row.response_ids.size)
        for match in self._pattern.finditer(row.answer):
            if match.end() > match.start():
                found[row.token_of(match.end())] += self._reward
        return [float(number) for number in found]
