"""Peak memory of a run: proportional set size, summed over all its processes."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

INTERVAL_S = 2.0


def tree_pss_bytes(root: int) -> int:
    """Proportional set size of a process and all its descendants, in bytes (Linux).

    PSS splits shared pages among the processes that map them, so the sum counts every page once. Processes that end while
    being read count 0.
    """
    try:
        process = psutil.Process(root)
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_pss(member.pid) for member in members)


def _pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0
    return 0


class MemoryMonitor:
    """Samples the memory of this process and its descendants in a thread; ``peak_gb`` is the largest sum seen (10^9 bytes)."""

    def __init__(self, root: int, interval_s: float = INTERVAL_S) -> None:
        self._root = root
        self._interval = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-monitor", daemon=True)
        self.peak_bytes = 0

    @property
    def peak_gb(self) -> float:
        """Peak so far, in GB."""
        return self.peak_bytes / 1e9

    def __enter__(self) -> MemoryMonitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(self._root))
            if self._done.wait(self._interval):
                return
