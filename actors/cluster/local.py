"""Rays of this user on this machine, as their processes tell, and whether others can enter their files.

Ray makes its temporary folder and all below it open to every user of the machine: who can enter it can swap the package of a job.
Only a closed folder above keeps others out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from dvpo_ray.errors import ConfigError, RunError
from dvpo_ray.io.closed_folders import closed_folder_above

# Below Ray's temporary folder, with a process id of seven digits.
SOCKETS = "/session_2026-01-01_00-00-00_000000_4194304/sockets/"
# The longest names of sockets, of a Ray without and with a dashboard.
LONGEST_SOCKETS = ("plasma_store", "dash_MetricsHead")
SOCKET_BYTES = 107
START = "start one by `dvpo cluster start`"


@dataclass(frozen=True)
class Session:
    """A Ray on this machine. ``folder`` holds its files, ``address`` is that of its state, ``dashboard`` a URL or None."""

    folder: Path
    address: str
    dashboard: str | None

    @property
    def closed_by(self) -> Path | None:
        """The folder that keeps other users out; None where none does."""
        return closed_folder_above(self.folder)

    def processes(self) -> list[psutil.Process]:
        """All that belong to it: those that were started for its folder, and those below them."""
        found = {process.pid: process for process, words in _commands() if any(str(self.folder) in word for word in words)}
        for process in list(found.values()):
            with suppress(psutil.Error):
                found |= {one.pid: one for one in process.children(recursive=True)}
        found.pop(os.getpid(), None)
        return list(found.values())


def sessions() -> list[Session]:
    """The Rays whose processes this user runs here, as head or worker, by their folders."""
    found: dict[str, dict[str, str]] = {}
    for _, words in _commands():
        options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
        folder = options.get("session-dir") or options.get("session_dir")
        if folder and Path(folder).is_dir():
            facts = found.setdefault(folder, {})
            if "gcs_server_port" in options:
                facts["address"] = f"{options['node-ip-address']}:{options['gcs_server_port']}"
            if "gcs-address" in options:
                facts["address"] = options["gcs-address"]
            if "host" in options and "port" in options:
                facts["dashboard"] = f"http://{options['host']}:{options['port']}"
    return [Session(Path(name), one["address"], one.get("dashboard")) for name, one in sorted(found.items()) if "address" in one]


def own_session() -> Session:
    """The one Ray of this user on this machine.

    Raises:
        RunError: there is none, or more than one.
    """
    found = sessions()
    if not found:
        raise RunError(f"no Ray of yours runs on this machine: {START}, or name one elsewhere by its address")
    if len(found) > 1:
        names = ", ".join(f"{one.dashboard or one.address} in '{one.folder.parent}'" for one in found)
        raise RunError(f"{len(found)} Rays of yours run on this machine ({names}): name one by its address")
    return found[0]


def named_here(name: str) -> Path | None:
    """The folder of a session on this machine, whoever runs it; None when no process here says where it is."""
    for _, words in _commands(everyone=True):
        for word in words:
            folder = word.partition("=")[2]
            if folder.endswith(f"/{name}") and Path(folder).is_dir():
                return Path(folder)
    return None


def refuse_open(folder: Path) -> None:
    """Refuse a session whose files other users of this machine can enter.

    Raises:
        RunError: naming the folder and the remedy.
    """
    if closed_folder_above(folder) is None:
        raise RunError(
            f"other users of this machine can enter '{folder}', where this Ray keeps the code of its jobs and runs it from: stop "
            f"it and {START}; where nobody else has an account, as in a container of your own, give --trust-local-users"
        )


def check_socket_room(folder: Path, dashboard: bool = True) -> None:
    """Refuse a temporary folder of Ray's below which a Unix socket would have too long a name.

    Raises:
        ConfigError: naming the length that is left.
    """
    most = SOCKET_BYTES - len(SOCKETS) - len(LONGEST_SOCKETS[dashboard])
    if len(os.fsencode(folder)) > most:
        raise ConfigError(
            f"'{folder}' is too long for Ray's temporary folder: the sockets below it may have {SOCKET_BYTES} bytes with their "
            f"folders, which leaves {most} for it: name a shorter one (`dvpo cluster start --folder`, TMPDIR)"
        )


def _commands(everyone: bool = False) -> Iterator[tuple[psutil.Process, list[str]]]:
    """Processes with the words of their command lines; those of this user, or of all."""
    processes: Iterable[psutil.Process] = psutil.process_iter()
    for process in processes:
        with suppress(psutil.Error):
            if everyone or process.uids().real == os.getuid():
                yield process, process.cmdline()
