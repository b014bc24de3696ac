"""Which value model scores the rows of which step."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dvpo_ray.errors import CheckpointError
from dvpo_ray.types import ScorerVersion

SCHEDULE = TypeAdapter(list[tuple[int, ScorerVersion]])


class ScorerSchedule:
    """A value model announced after a step scores the steps that begin after it: those ``lead`` steps further on than the next,
    however far ahead rows are made, so that a run that is started again scores each step by the same."""

    def __init__(self, lead: int) -> None:
        self._lead = lead
        self._from: list[tuple[int, ScorerVersion]] = []

    def numbered(self, version: ScorerVersion) -> ScorerVersion:
        """A version as the next of the run, whatever number it came with: who announces it may not know of those before, after
        the run was resumed."""
        return replace(version, number=self._from[-1][1].number + 1 if self._from else 1)

    def announce(self, step: int, version: ScorerVersion) -> None:
        """A numbered version is there after ``step`` was trained."""
        self._from.append((step + 1 + self._lead, version))

    def of(self, step: int) -> ScorerVersion | None:
        """Whose values the rows of a step get; None: those of the recipe's value model."""
        return next((version for first, version in reversed(self._from) if first <= step), None)

    def state(self) -> list[Any]:
        """For a checkpoint."""
        return [[first, asdict(version)] for first, version in self._from]

    def restore(self, state: list[Any]) -> None:
        """As a checkpoint has it.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            self._from = SCHEDULE.validate_python(state)
        except ValidationError as error:
            raise CheckpointError(f"state.scorers is damaged: {error.errors()[0]['msg']}") from error
