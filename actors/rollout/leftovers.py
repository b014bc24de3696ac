"""What the processes of a vLLM engine leave on their node: when they are killed, and some of it when they are not."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dvpo_ray.types import EngineLeftovers

# What the processes of an engine share: message queues and semaphores of Python's multiprocessing, and between its workers on
# CPU the buffers of their collectives.
SHARED_MEMORY = Path("/dev/shm")
ENGINE_FILES = ("psm_", "sem.mp-", "vllm_dist_")
# Where vLLM makes its sockets, which it does not remove. The system takes paths of 107 characters; a socket's name has 36.
SOCKET_FOLDER = "VLLM_RPC_BASE_PATH"
SOCKETS = "dvpo-zmq-"
LONGEST_FOLDER = 107 - len("/") - 36
PATIENCE_S = 5.0
TRACKER = "multiprocessing.resource_tracker"


def keep_sockets_together() -> None:
    """Let the engine that this process starts make its sockets in a folder of their own."""
    prefix = f"{SOCKETS}{os.getpid()}-"
    fits = len(tempfile.gettempdir()) + len(f"/{prefix}12345678") <= LONGEST_FOLDER
    os.environ[SOCKET_FOLDER] = tempfile.mkdtemp(prefix=prefix, dir=None if fits else "/tmp")


def socket_folders_of(pid: int) -> list[str]:
    """Where a process of this machine that started an engine has its sockets."""
    return [str(path) for folder in {"/tmp", tempfile.gettempdir()} for path in Path(folder).glob(f"{SOCKETS}{pid}-*")]


def traces_of_children() -> EngineLeftovers:
    """The processes under this one, the shared memory that they and this one use, and the folder of their sockets."""
    found = traces_of([psutil.Process(), *psutil.Process().children(recursive=True)])
    folder = os.environ.get(SOCKET_FOLDER, "")
    return EngineLeftovers(found.processes[1:], found.files, (folder,) if is_ours(folder) else ())


def traces_of(family: Sequence[psutil.Process]) -> EngineLeftovers:
    """Those of some processes that are there still, and the shared memory that they use."""
    processes, inodes = [], set()
    for process in family:
        # Processes and files of others come and go.
        with contextlib.suppress(psutil.Error, OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
            # A semaphore's map keeps a temporary name: only the inode tells which file it is.
            inodes |= {int(line.split()[4]) for line in maps if f" {SHARED_MEMORY}/" in line}
            processes.append((process.pid, process.create_time()))
    files = []
    for file in SHARED_MEMORY.iterdir():
        with contextlib.suppress(OSError):
            if file.name.startswith(ENGINE_FILES) and file.stat().st_ino in inodes:
                files.append(file.name)
    return EngineLeftovers(tuple(processes), tuple(sorted(files)))


def is_tracker(process: psutil.Process) -> bool:
    """Whether a process is Python's resource tracker, which ends when the process that started it does, and never before."""
    with contextlib.suppress(psutil.Error):
        return any(TRACKER in word for word in process.cmdline())
    return False


def ending_before_us(traces: EngineLeftovers) -> EngineLeftovers:
    """The same without this process's resource tracker, and without what has ended."""
    found = []
    for pid, started in traces.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if not is_tracker(psutil.Process(pid)):
                found.append((pid, started))
    return replace(traces, processes=tuple(found))


def is_ours(folder: str) -> bool:
    """Whether ``keep_sockets_together`` can have made a folder."""
    path = Path(folder)
    return path.name.startswith(SOCKETS) and str(path.parent) in ("/tmp", tempfile.gettempdir())


def clear(traces: EngineLeftovers, patience: float = PATIENCE_S) -> None:
    """Remove what an engine left on this node: its processes if they do not end by themselves, its shared memory, its sockets."""
    family = []
    for pid, started in traces.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == started:
                family.append(process)
    # One of them cleans up after the others when it is let.
    _, alive = psutil.wait_procs(family, timeout=patience)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE_S)
    for name in traces.files:
        if Path(name).name == name and name.startswith(ENGINE_FILES):
            (SHARED_MEMORY / name).unlink(missing_ok=True)
    for folder in filter(is_ours, traces.sockets):
        shutil.rmtree(folder, ignore_errors=True)


def clear_on(node: str, traces: EngineLeftovers, patience: float = PATIENCE_S) -> Any:
    """Begin to remove what an engine left on a node that no actor of ours need be on; returns Ray's reference."""
    place = NodeAffinitySchedulingStrategy(node, soft=True) if node else "DEFAULT"
    return ray.remote(clear).options(num_cpus=0, scheduling_strategy=place).remote(traces, patience)
