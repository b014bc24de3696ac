"""The verdicts of an evaluation, each on the disk as soon as it is there: what is paid for is never asked again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dvpo_ray.errors import DataError
from dvpo_ray.json_files import REMEDY, read_records
from dvpo_ray.judging.verdicts import Verdict


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
    """JSON lines; use as a context. One process at a time (``dvpo_ray.run_folder.locked``)."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a last line that a kill cut short is taken off.

        Raises:
            DataError: naming the line that holds something else.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            _cut_unfinished_line(path)
        self.known: dict[str, Judgement] = {}
        for number, row in enumerate(read_records(path), 1):
            try:
                judgement = Judgement.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                raise DataError(f"{path}, row {number}: {field}: {first['msg']}; {REMEDY}") from error
            self.known[judgement.key] = judgement
        self._stream = path.open("a", encoding="utf-8")

    def add(self, judgement: Judgement) -> None:
        """Keep a verdict, on the disk before this returns."""
        self._stream.write(json.dumps(judgement.model_dump()) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.known[judgement.key] = judgement

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()


def _cut_unfinished_line(path: Path) -> None:
    with path.open("r+b") as stream:
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)
