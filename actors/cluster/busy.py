"""How long a process had work to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType


class BusyClock:
    """Adds up the time in which at least one piece of work was under way: a context manager, or ``enter`` and ``leave``."""

    def __init__(self, told: Callable[[float], None] = lambda seconds: None) -> None:
        """``told`` is given the seconds since it was last told, after each piece of work."""
        self._told = told
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
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._total += seconds
        self._told(seconds)

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    @property
    def seconds(self) -> float:
        """Busy seconds so far, work under way included."""
        running = time.monotonic() - self._since if self._under_way else 0.0
        return self._total + running
