"""How long a process had work to do."""

from __future__ import annotations

import time
from types import TracebackType


class BusyClock:
    """Adds up the time in which at least one piece of work was under way: a context manager, or ``enter`` and ``leave``."""

    def __init__(self) -> None:
        self._total = 0.0
        self._under_way = 0
        self._since = 0.0

    def enter(self) -> None:
        """A piece of work begins."""
        if self._under_way == 0:
            self._since = time.monotonic()
        self._under_way += 1

    def leave(self) -> None:
        """A piece of work ends."""
        self._under_way -= 1
        if self._under_way == 0:
            self._total += time.monotonic() - self._since

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    @property
    def seconds(self) -> float:
        """Busy seconds so far, work under way included."""
        running = time.monotonic() - self._since if self._under_way else 0.0
        return self._total + running
