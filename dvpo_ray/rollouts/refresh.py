"""When another value model takes the place of the frozen one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from dvpo_ray.config.refresh import RefreshSettings
from dvpo_ray.types import RowOutcome, ScorerVersion


class ScorerRefresh(Protocol):
    """Looks at what became of a step's rows, and may bring a new value model."""

    def after(self, step: int, rows: Sequence[RowOutcome]) -> ScorerVersion | None:
        """The value model for the steps that are scored from now on, in a sealed folder, or None to keep the one there is.

        The run numbers it. A run that is resumed makes its refresh anew and tells it of later steps alone, so what it decides
        must follow from the step and its rows, or from what it finds on the disk.
        """
        ...


class NeverRefresh:
    """The value model stays as it is."""

    def __init__(self, settings: RefreshSettings) -> None:
        pass

    def after(self, step: int, rows: Sequence[RowOutcome]) -> ScorerVersion | None:
        """None."""
        return None
