"""The processes below this one, ended at once with all that they leave on this machine."""

from __future__ import annotations

import contextlib
import signal

import psutil

from actors.engine_traces import clear, socket_folders_of, traces_of_children
from dvpo_ray.rows import EngineTraces

GONE_S = 2.0


def end_family() -> None:
    """Kill all processes below this one, and remove what engines among them leave of shared memory and sockets."""
    traces = traces_of_children()
    # Those that stand still start no others, and start none anew that is gone.
    for process in _children():
        _send(process, signal.SIGSTOP)
    family = _children()
    for process in family:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(family, timeout=GONE_S)
    folders = [folder for process in family for folder in socket_folders_of(process.pid)]
    clear(EngineTraces(files=traces.files, sockets=tuple(folders)))


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _send(process: psutil.Process, signum: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signum)
