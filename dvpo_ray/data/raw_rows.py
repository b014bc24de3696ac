"""A row of a dataset as it was found, before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.data.reasons import Reason


@dataclass(frozen=True)
class RawRow:
    """``row`` is a JSON object, or None when ``problem`` says why there is none.

    ``line`` is the line of the file on which the row begins, or the row's number in a file whose lines are no rows. ``inside``
    is the file's name within its source, where that is more than its last part. ``parts`` are the rows that were put
    together into this one.
    """

    file: str
    line: int
    row: dict[str, Any] | None
    problem: Reason | None = None
    detail: str = ""
    inside: str = ""
    parts: tuple[RawRow, ...] = ()

    @property
    def rows(self) -> tuple[RawRow, ...]:
        """The rows of the source that it is."""
        return self.parts or (self,)

    @property
    def place(self) -> str:
        """What tells the row from all others of its source."""
        return f"{self.inside or Path(self.file).name}:{self.line}"
