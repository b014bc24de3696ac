"""The processes below this one, ended at once with all that they leave on this machine."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection

import psutil

from actors.engine_traces import clear, socket_folders_of, traces_of
from dvpo_ray.rows import EngineTraces

GONE_S = 2.0


def children() -> set[int]:
    """Ids of the processes that this one has started."""
    return {process.pid for process in psutil.Process().children()}


def end_family(spared: Collection[int] = ()) -> None:
    """Kill all processes below this one but those ``spared`` and what is below them, and remove what engines among them leave of
    shared memory and sockets."""
    traces = traces_of(_below(spared))
    # Those that stand still start no others, and start none anew that is gone.
    for process in _below(spared):
        _send(process, signal.SIGSTOP)
    family = _below(spared)
    for process in family:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(family, timeout=GONE_S)
    folders = [folder for process in family for folder in socket_folders_of(process.pid)]
    clear(EngineTraces(files=traces.files, sockets=tuple(folders)))


def _below(spared: Collection[int]) -> list[psutil.Process]:
    found = [process for process in psutil.Process().children() if process.pid not in spared]
    for process in list(found):
        with contextlib.suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


def _send(process: psutil.Process, signum: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signum)
