"""Where a process hangs: the stacks of all its threads in its log, before whoever waits for it gives up."""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import psutil

P = ParamSpec("P")
T = TypeVar("T")
LATE_AFTER = "DVPO_LATE_AFTER_S"
STDERR = 2
SIGNAL = signal.SIGUSR2


def watched(method: Callable[P, T]) -> Callable[P, T]:
    """A method of an actor that does one thing at a time: when it takes longer than its caller waits, stacks go to the log.

    The interpreter's own watchdog thread writes them: it needs no lock that the hanging code may hold.
    """

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        seconds = float(os.environ.get(LATE_AFTER, 0))
        if not seconds:
            return method(*args, **kwargs)
        faulthandler.dump_traceback_later(seconds, file=STDERR)
        try:
            return method(*args, **kwargs)
        finally:
            faulthandler.cancel_dump_traceback_later()

    return run


def answer_with_stacks() -> None:
    """Let this process write its stacks when another asks for them."""
    faulthandler.register(SIGNAL, file=STDERR, all_threads=True)


def dump_process_tree_stacks() -> None:
    """The stacks of this process and of those under it that can tell theirs, and what state each is in, to the log."""
    faulthandler.dump_traceback(file=STDERR)
    for process in psutil.Process().children(recursive=True):
        try:
            state = process.status()
            logging.getLogger(__name__).warning("process %d (%s) is %s", process.pid, process.name(), state)
            if catches(process.pid, SIGNAL):
                process.send_signal(SIGNAL)
        except (psutil.Error, OSError):
            # It is gone.
            continue


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: without one the signal would end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)
