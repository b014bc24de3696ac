"""What a row holds beside what is read of it: kept for rewards and environments."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

# What a row may keep, as JSON.
MOST_BYTES = 64 * 1024
TOO_LARGE = f"columns left out of rows that would keep more than {MOST_BYTES // 1024} KiB"
NO_JSON = "columns left out that JSON cannot hold"


class ReadRow(dict[str, Any]):
    """A row that knows which of its columns were asked for."""

    def __init__(self, row: Any) -> None:
        super().__init__(row)
        self.names: set[str] = set()
        self._read: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def settle(self) -> None:
        """What was asked for until now is what was read; what is asked for later is not."""
        self._read = frozenset(self.names)

    def others(self, notes: Counter[str]) -> dict[str, Any]:
        """The columns that were not read, without empty ones; ``notes`` counts those left out, by kind."""
        kept: dict[str, Any] = {}
        left = MOST_BYTES
        for name, value in self.items():
            # Tables say NaN where there is nothing.
            if name in self._read or value is None or value != value:
                continue
            try:
                size = len(name.encode()) + len(json.dumps(value, allow_nan=False).encode())
            except (TypeError, ValueError, RecursionError):
                notes[NO_JSON] += 1
                continue
            if size > left:
                notes[TOO_LARGE] += 1
                continue
            kept[name] = value
            left -= size
        return kept
