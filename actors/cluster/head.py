"""A Ray head on this machine for one user alone: its files in a folder that nobody else can enter, and a token."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from actors.cluster.local import Session, check_socket_room, sessions
from actors.cluster.session import ray_environment
from actors.cluster.token import make_token
from dvpo_ray.errors import RunError, UserInputError
from dvpo_ray.io.closed_folders import make_closed_folder

STATE_PORT, DASHBOARD_PORT = 6379, 8265
# Ray makes its own folder open to everyone.
INNER = "ray"
START_S = 180.0
RAYLET = "raylet"
# A node that was at work until now takes half a minute to drain; of the rest Ray's monitor does not end by itself.
DRAIN_S, END_S = 45.0, 8.0
SAID_LINES = 3


def default_folder() -> Path:
    """Of this user, short enough for sockets."""
    return Path(tempfile.gettempdir()) / f"ray-{os.getuid()}"


def running_in(folder: Path) -> Session | None:
    """The head that was started in a folder and runs."""
    inner = (folder / INNER).resolve()
    return next((one for one in sessions() if one.folder.resolve().parent == inner), None)


def start_head(folder: Path, cpus: int, gpus: int | None, object_store_mb: int | None) -> Session:
    """Start a head whose files lie in ``folder``, with its dashboard on loopback.

    Raises:
        UserInputError: one runs there, or others can enter the folder, or its name is too long.
        RunError: Ray does not start.
    """
    folder = folder.absolute()
    check_socket_room(folder / INNER)
    make_closed_folder(folder)
    running = running_in(folder)
    if running is not None:
        raise UserInputError(
            f"a Ray runs in '{folder}' already, its dashboard at {running.dashboard}: end it by `dvpo cluster stop`, or name "
            "another --folder"
        )
    make_token()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", f"--temp-dir={folder / INNER}"]
    command += [f"--num-cpus={cpus}", "--dashboard-host=127.0.0.1", "--disable-usage-stats", *_ports()]
    command += [] if gpus is None else [f"--num-gpus={gpus}"]
    command += [] if object_store_mb is None else [f"--object-store-memory={object_store_mb * 2**20}"]
    try:
        _run(command, folder)
        session = running_in(folder)
        if session is None:
            raise RunError(f"Ray said that it started in '{folder}' and has ended since; its logs are below that folder")
    except BaseException:
        left = running_in(folder)
        if left is not None:
            end(left)
        raise
    return session


def stop_head(folder: Path) -> Session:
    """End the head that was started in a folder, with all that it runs.

    Raises:
        UserInputError: none runs there.
    """
    session = running_in(folder.absolute())
    if session is None:
        raise UserInputError(f"no Ray of yours runs in '{folder}': name the --folder that it was started in")
    end(session)
    return session


def end(session: Session) -> None:
    """End a session's processes, by their ids. Its raylet goes first, for it tells the others that it goes; what does not end is
    killed.

    Raises:
        RunError: something outlived that.
    """
    family = session.processes()
    _terminate([process for process in family if _name(process) == RAYLET], DRAIN_S)
    ids = {process.pid for process in family}
    _terminate([process for process in family if _parent(process) not in ids], END_S)
    left = {*family, *session.processes()}
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    _, alive = psutil.wait_procs(left, timeout=END_S)
    if alive:
        raise RunError(f"these processes of the Ray in '{session.folder}' do not end: {[process.pid for process in alive]}")


def _terminate(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Ask processes to end, and wait for them."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    psutil.wait_procs(processes, timeout=seconds)


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


def _parent(process: psutil.Process) -> int | None:
    with suppress(psutil.Error):
        return process.ppid()
    return None


def free_ports(count: int) -> list[int]:
    """As many ports that nothing listens on at this moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _ports() -> list[str]:
    """Options for ports: Ray's own where they are free, and for what every Ray of a machine would take the same free ones."""
    state, dashboard, agent, client = free_ports(4)
    state = STATE_PORT if _is_free(STATE_PORT) else state
    dashboard = DASHBOARD_PORT if _is_free(DASHBOARD_PORT) else dashboard
    named = {"port": state, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent, "ray-client-server-port": client}
    # Workers' are chosen by the kernel: those that Ray would take hold others' fixed ones.
    return [f"--{name}={port}" for name, port in (named | {"min-worker-port": 0, "max-worker-port": 0}).items()]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _run(command: list[str], folder: Path) -> None:
    """Let Ray start its processes, which outlive the command and the terminal."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, **ray_environment(), "RAY_AUTH_MODE": "token", "PATH": path}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=START_S, check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RunError(f"Ray did not start within {START_S:.0f} s: its logs are in '{folder / INNER}'") from error
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()][-SAID_LINES:]
        raise RunError(f"Ray did not start: {' '.join(lines)}; its logs are in '{folder / INNER}'")
