"""Peak memory of a run: proportional set size, summed over all its processes."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

INTERVAL_S = 1.0
GROWTH = 1.01


def tree_pss_by_process(root: int) -> dict[str, int]:
    """Proportional set size in bytes of a process and all its descendants (Linux), those of one name added up.

    PSS splits shared pages among the processes that map them, so the sum counts every page once. Processes that end while
    being read count 0.
    """
    found: dict[str, int] = {}
    for pid in _members(root):
        name = _name(pid)
        found[name] = found.get(name, 0) + _pss(pid)
    return found


def tree_rss_bytes(root: int) -> int:
    """Resident set size summed over a process and its descendants, in bytes: counts shared pages many times, but is cheap."""
    return sum(_rss(pid) for pid in _members(root))


def _members(root: int) -> list[int]:
    try:
        process = psutil.Process(root)
        return [root, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _name(pid: int) -> str:
    """The actor's class for Ray's workers (they title themselves ``ray::Class.method``), else the program's name."""
    try:
        title = (psutil.Process(pid).cmdline() or [""])[0]
    except psutil.Error:
        return "ended"
    return title.removeprefix("ray::").partition(".")[0] if "::" in title else title.rpartition("/")[2]


def _rss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


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
    """Watches the memory of a process and its descendants in a thread; ``peak_gb`` is the largest PSS seen (10^9 bytes).

    The kernel walks every page to tell the PSS, which would cost most of a core for processes of gigabytes. So the cheap RSS
    is watched, and the PSS is read only when the RSS has grown beyond where it was read last.
    """

    def __init__(self, root: int, interval_s: float = INTERVAL_S) -> None:
        self._root = root
        self._interval = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-monitor", daemon=True)
        self.peak_bytes = 0
        self._by_process: dict[str, int] = {}

    @property
    def peak_gb(self) -> float:
        """Peak so far, in GB."""
        return self.peak_bytes / 1e9

    @property
    def peak_by_process_gb(self) -> dict[str, float]:
        """What the peak was made of, in GB, largest first; processes below 10 MB are left out."""
        largest = sorted(self._by_process.items(), key=lambda item: -item[1])
        return {name: round(size / 1e9, 3) for name, size in largest if size >= 10**7}

    def __enter__(self) -> MemoryMonitor:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        largest_rss = 0.0
        while True:
            rss = tree_rss_bytes(self._root)
            if rss > largest_rss * GROWTH:
                largest_rss = rss
                found = tree_pss_by_process(self._root)
                if sum(found.values()) > self.peak_bytes:
                    self.peak_bytes, self._by_process = sum(found.values()), found
            if self._done.wait(self._interval):
                return
