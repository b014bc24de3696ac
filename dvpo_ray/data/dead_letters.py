"""Rows that could not be used, kept with their place and reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType

from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.reasons import Reason
from dvpo_ray.io.disk import LineFile

EXCERPT = 200
MOST_LETTERS = 20_000


class DeadLetters:
    """Appends to a JSON lines file, made when the first letter comes; None keeps counts only. Several sources share a file: who
    reads them all anew removes it first.

    After ``MOST_LETTERS`` only counts go on, and the last line says how many rows it stands for: bad rows of a packed file may
    take hundreds of times its room."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.counts: Counter[Reason] = Counter()
        self._unwritten: Counter[Reason] = Counter()
        self._written = 0
        self._stream: LineFile | None = None

    def add(self, raw: RawRow, row_id: str | None, reason: Reason, detail: str) -> None:
        """Record one bad row; it is on disk when this returns."""
        self.counts[reason] += 1
        if self.path is None:
            return
        self._written += 1
        if self._written > MOST_LETTERS:
            self._unwritten[reason] += 1
            return
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = LineFile(self.path)
        place = {"file": raw.file, "line": raw.line, "row_id": row_id}
        letter = place | {"reason": reason, "detail": detail[:EXCERPT], "excerpt": _excerpt(raw)}
        self._stream.add(json.dumps(letter))

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            if self._unwritten:
                self._stream.add(json.dumps({"rows_not_written": dict(self._unwritten)}))
            self._stream.close()


def _excerpt(raw: RawRow) -> str:
    """The beginning of a row, for people."""
    try:
        return "" if raw.row is None else json.dumps(raw.row, default=str)[:EXCERPT]
    except RecursionError:  # it could just be read, with less of the stack in use
        return "(nested too deeply to be shown)"
