"""The processes below this one, ended at once with all that they leave on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

import psutil

from actors.rollout.leftovers import clear, socket_folders_of, traces_of
from dvpo_ray.types import EngineLeftovers

GONE_S = 2.0
MEETING_POINT = "vllm_dist_"


def children() -> set[int]:
    """Ids of the processes that this one has started."""
    return {process.pid for process in psutil.Process().children()}


def end_family(spared: Collection[int] = ()) -> None:
    """Kill all processes below this one but those ``spared`` and what is below them, and remove what engines among them leave of
    shared memory and sockets."""
    began = time.time()
    for process in _below(spared):
        with contextlib.suppress(psutil.Error):
            began = min(began, process.create_time())
    traces = traces_of(_below(spared))
    # Those that stand still start no others, and start none anew that is gone.
    for process in _below(spared):
        _send(process, signal.SIGSTOP)
    family = _below(spared)
    for process in family:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(family, timeout=GONE_S)
    folders = [folder for process in family for folder in socket_folders_of(process.pid)]
    clear(EngineLeftovers(files=traces.files, sockets=tuple(folders)))
    if not _other_engines({process.pid for process in family}):
        _clear_meeting_points(began)


def _below(spared: Collection[int]) -> list[psutil.Process]:
    found = [process for process in psutil.Process().children() if process.pid not in spared]
    for process in list(found):
        with contextlib.suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


def _other_engines(killed: Collection[int]) -> bool:
    """Whether an engine of somebody else is on this machine."""
    found = [one for one in psutil.process_iter(["name", "status"]) if (one.info["name"] or "").startswith("VLLM")]
    return any(one.pid not in killed and one.info["status"] != psutil.STATUS_ZOMBIE for one in found)


def _clear_meeting_points(began: float) -> None:
    """Remove the files by which workers of engines found each other, made since ``began``; they do not tell whose they are."""
    for file in Path(tempfile.gettempdir()).glob(f"{MEETING_POINT}*"):
        with contextlib.suppress(OSError):
            found = file.stat()
            if found.st_uid == os.getuid() and found.st_mtime >= began:
                file.unlink()


def _send(process: psutil.Process, signum: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(signum)
