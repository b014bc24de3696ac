"""A limit to the time that Python code of others may take within this process."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# How often the clock is looked at: code may take so much longer than its limit.
PERIOD_S = 0.5


class OutOfTimeError(Exception):
    """Code took longer than it may."""


class Watchdog:
    """Interrupts threads that are late. Its own thread begins with the first of them, and anew in a process that was forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[int, float] = {}
        self._late: set[int] = set()
        self._thread: threading.Thread | None = None
        self._never = threading.Event()

    def within(self, seconds: float, work: Callable[[], T]) -> T:
        """What ``work`` returns, or its exception.

        It is interrupted between two steps of Python; a single step, as of arithmetic, is waited for.

        Raises:
            OutOfTimeError: it took longer than ``seconds``.
        """
        me = threading.get_ident()
        with self._lock:
            self._late.discard(me)
            self._due[me] = time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="time-limit", daemon=True)
                self._thread.start()
        try:
            found = work()
        finally:
            late = self._ended(me)
        if late:
            raise OutOfTimeError
        return found

    def _ended(self, me: int) -> bool:
        with self._lock:
            self._due.pop(me, None)
            late = me in self._late
            self._late.discard(me)
            if late:
                # One that has not arrived yet would hit what comes next.
                _raise_in(me, None)
        return late

    def _watch(self) -> None:
        while not self._never.wait(PERIOD_S):
            with self._lock:
                now = time.monotonic()
                for thread in [one for one, due in self._due.items() if due < now]:
                    del self._due[thread]
                    self._late.add(thread)
                    _raise_in(thread, OutOfTimeError)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Let a thread meet an exception at its next step; None takes back one that has not arrived."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error))


within = Watchdog().within
