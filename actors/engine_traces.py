"""What the processes of a vLLM engine leave on their node: when they are killed, and some of it when they are not."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import psutil

from dvpo_ray.rows import EngineTraces

# What the processes of an engine share: message queues and semaphores of Python's multiprocessing, and between its workers on
# CPU the buffers of their collectives.
SHARED_MEMORY = Path("/dev/shm")
ENGINE_FILES = ("psm_", "sem.mp-", "vllm_dist_")
# Where vLLM makes its sockets, which it does not remove; their paths, with 36 characters to a name, must be shorter than 108.
SOCKET_FOLDER = "VLLM_RPC_BASE_PATH"
SOCKETS = "dvpo-zmq-"
PATIENCE_S = 5.0


def keep_sockets_together() -> None:
    """Let the engine that this process starts make its sockets in a folder of their own."""
    os.environ[SOCKET_FOLDER] = tempfile.mkdtemp(prefix=SOCKETS)


def traces_of_children() -> EngineTraces:
    """The processes under this one, the shared memory that they and this one use, and the folder of their sockets."""
    processes, inodes = [], set()
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
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
    folder = Path(os.environ.get(SOCKET_FOLDER, ""))
    return EngineTraces(tuple(processes[1:]), tuple(sorted(files)), (folder.name,) if folder.name.startswith(SOCKETS) else ())


def clear(traces: EngineTraces) -> None:
    """Remove what an engine left on this node: its processes if they do not end by themselves, its shared memory, its sockets."""
    family = []
    for pid, started in traces.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() == started:
                family.append(process)
    # One of them cleans up after the others when it is let.
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE_S)
    for name in traces.files:
        if Path(name).name == name and name.startswith(ENGINE_FILES):
            (SHARED_MEMORY / name).unlink(missing_ok=True)
    for name in traces.sockets:
        if Path(name).name == name and name.startswith(SOCKETS):
            shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)
