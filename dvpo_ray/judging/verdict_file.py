"""The verdicts of an evaluation, each on the disk as soon as it is there: what is paid for is never asked again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

from dvpo_ray.errors import DataError
from dvpo_ray.json_files import iter_records
from dvpo_ray.judging.verdicts import Verdict

# How a verdict's line begins, by which one that a kill cut short is told from somebody else's last line.
BEGINNING = b'{"key": '
REMEDY = "copy the file again from where it was whole, or give --verdicts a file of its own"


class Judgement(BaseModel):
    """One reply of the judge. ``key`` says to what (``Request.identity``); ``verdict`` is None when none could be read."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    key: str
    question: str
    verdict: Verdict | None
    reply: str
    finish_reason: str
    input_tokens: int
    output_tokens: int


class VerdictFile:
    """JSON lines: what is there is read at once, and written to within a context alone. One process at a time
    (``dvpo_ray.run_folder.locked``)."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a last line that a kill cut short is left out, and taken off when the context begins.

        Raises:
            DataError: naming the line that holds something else.
        """
        self._path = path
        self._stream: TextIO
        self.known: dict[str, Judgement] = {}
        for number, line, row in iter_records(path):
            cut = not line.endswith(b"\n")
            if cut and (self.known or line[: len(BEGINNING)] == BEGINNING[: len(line)]):
                break
            if cut or isinstance(row, Exception):
                raise DataError(f"{path}, line {number}: {'no verdict' if cut else row}; {REMEDY}")
            try:
                judgement = Judgement.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise DataError(f"{path}, line {number}: {field}: {first['msg']}; {REMEDY}") from error
            self.known[judgement.key] = judgement

    def add(self, judgement: Judgement) -> None:
        """Keep a verdict, on the disk before this returns."""
        self._stream.write(json.dumps(judgement.model_dump()) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.known[judgement.key] = judgement

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_file():
            os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)
        self._stream = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()
