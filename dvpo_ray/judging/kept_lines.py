"""What was paid for or waited for, each on the disk as soon as it is there: a command given again does not ask for it again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dvpo_ray.errors import DataError
from dvpo_ray.io.disk import LineFile
from dvpo_ray.io.json_files import iter_records

# How a line begins, by which one that a kill cut short is told from somebody else's last line.
BEGINNING = b'{"key": '


class Kept(BaseModel):
    """One line. ``key`` says what was asked, of whom and how: a hash of all that could change what comes back."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    key: str


K = TypeVar("K", bound=Kept)


class Journal(Generic[K]):
    """JSON lines of one ``kind``: what is there is read at once, and written to within a context alone. One process at a time
    (``dvpo_ray.runs.folder.locked``)."""

    def __init__(self, path: Path, kind: type[K], remedy: str) -> None:
        """Reads what is there; a last line that a kill cut short is left out, and taken off when the context begins.

        Raises:
            DataError: naming the line that holds something else, and the remedy.
        """
        self._path = path
        self._file: LineFile
        self.known: dict[str, K] = {}
        for number, line, row in iter_records(path):
            cut = not line.endswith(b"\n")
            if cut and (self.known or line[: len(BEGINNING)] == BEGINNING[: len(line)]):
                break
            if cut or isinstance(row, Exception):
                raise DataError(f"{path}, line {number}: {f'no {kind.__name__}' if cut else row}; {remedy}")
            try:
                one = kind.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise DataError(f"{path}, line {number}: {field}: {first['msg']}; {remedy}") from error
            self.known[one.key] = one

    def add(self, one: K) -> None:
        """Keep a line, on the disk before this returns."""
        self._file.add(json.dumps(one.model_dump()))
        self._file.flush_to_disk()
        self.known[one.key] = one

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_file():
            os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)
        self._file = LineFile(self._path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
