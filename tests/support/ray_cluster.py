"""A Ray cluster of this machine for tests, started and ended as a person would: `ray start --head`, asking for a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.real import files_left

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
PORTS += ("runtime-env-agent-port", "node-manager-port", "object-manager-port")
END_S = 60.0


@dataclass(frozen=True)
class RayCluster:
    """``folder`` holds what Ray writes, ``token`` opens it; ``port`` is that of its state, ``url`` is its dashboard's."""

    folder: Path
    port: int
    url: str
    token: str

    def environment(self, token: str | None, **more: str) -> dict[str, str]:
        """Variables of a process that has this token, or none; its home holds no other."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "DVPO_", "WANDB_"))}
        kept |= {"HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT)} | more
        return kept if token is None else kept | {"RAY_AUTH_TOKEN": token}

    def dvpo(self, *words: str) -> list[str]:
        """A command line of ours, for this cluster."""
        return [sys.executable, "-m", "jobs.cli.main", *words, "--address", self.url]


@contextmanager
def ray_cluster(cpus: int) -> Iterator[RayCluster]:
    """A head with its dashboard on loopback, on free ports, with files of its own. Afterwards all its processes have ended.

    Raises:
        RuntimeError: it did not start, or something outlived it.
    """
    folder = Path(tempfile.mkdtemp(prefix="dvpo-e2e-"))  # sockets below it: its name must be short
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    (folder / "home").mkdir()
    cluster = RayCluster(folder, ports["port"], f"http://127.0.0.1:{ports['dashboard-port']}", secrets.token_hex(32))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(cluster.token)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--num-cpus={cpus}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder / 'ray'}"]
    command += ["--object-store-memory=268435456", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    before = files_left()
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "DVPO_", "PYTHONPATH"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        said = started(head)
        if head.poll() is not None:
            raise RuntimeError(f"Ray did not start: {said}")
        yield cluster
    finally:
        try:
            end(head, token)
        finally:
            shutil.rmtree(folder)
    left = files_left() - before
    if left:
        raise RuntimeError(f"files left behind: {left}")


@contextmanager
def another_node(cluster: RayCluster, cpus: int, labels: str) -> Iterator[None]:
    """One more node of a cluster, with labels of Ray (``name=value``); it ends with the cluster's other processes.

    Raises:
        RuntimeError: it did not start.
    """
    names = [name for name in PORTS if name not in ("port", "dashboard-port")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [str(Path(sys.executable).with_name("ray")), "start", f"--address=127.0.0.1:{cluster.port}", "--block"]
    command += ["--disable-usage-stats", f"--num-cpus={cpus}", f"--labels={labels}", "--object-store-memory=134217728"]
    command += ["--min-worker-port=0", "--max-worker-port=0", *(f"--{name}={port}" for name, port in ports.items())]
    # Nodes with one folder would delete each other's packages.
    folder = cluster.folder / f"node-{ports['node-manager-port']}"
    folder.mkdir()
    command.append(f"--temp-dir={folder}")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "DVPO_", "PYTHONPATH"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.folder / "token")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        said = started(node)
        if node.poll() is not None:
            raise RuntimeError(f"the node did not start: {said}")
        yield
    finally:
        if node.poll() is None:
            node.send_signal(signal.SIGTERM)
        node.communicate(timeout=END_S)


def started(head: subprocess.Popen[str]) -> str:
    """What Ray says until it has started, or has failed to."""
    said = ""
    assert head.stdout
    for line in head.stdout:
        said += line
        if "Ray runtime started" in line:
            break
    return said


def end(head: subprocess.Popen[str], token: Path) -> None:
    """End a head and all that it started. A node that was at work until now takes Ray half a minute to drain.

    Raises:
        RuntimeError: something outlived it.
    """
    family = processes_of(token)
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=END_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=END_S)
    head.communicate(timeout=END_S)
    if alive:
        raise RuntimeError(f"outlived their cluster: {alive}")


def processes_of(token: Path) -> list[psutil.Process]:
    """All processes of a cluster, whoever their parent is by now: the name of its token's file is in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("RAY_AUTH_TOKEN_PATH") == str(token):
                found.append(process)
    return found


def free_ports(count: int) -> list[int]:
    """So many ports that nothing listens on at this moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def run(command: Sequence[str], folder: Path, environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """A command to its end, whatever that is."""
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
