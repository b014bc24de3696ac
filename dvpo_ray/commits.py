"""Commits: all that a run needs to go on, on disk whole or not at all.

A commit is a folder ``step-00000010`` with tensors (safetensors, no pickles) and ``manifest.json``, which holds the driver's
state and the sha256 of every file. It is written under a temporary name, flushed to the disk, and renamed; then the file
``latest`` is moved to it. Nothing of a commit is read before its manifest and all its files have been checked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.errors import CommitError, DamagedCommitError, ModelError
from dvpo_ray.models.folder import MANIFEST, check_files

KEY_VARIABLE = "DVPO_COMMIT_KEY"
LATEST = "latest"
PREFIX, UNFINISHED, QUARANTINE, ABANDONED = "step-", ".unfinished-", "quarantine-", "abandoned-"
FORMAT = 1


@dataclass(frozen=True)
class Commit:
    """A verified commit: ``step`` steps are trained, ``state`` is the driver's."""

    folder: Path
    step: int
    state: dict[str, Any]


class CommitStore:
    """The commits of one run. One process writes; a lock on the run sees to that."""

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int = 0) -> None:
        self.folder = folder
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._key = os.environ.get(KEY_VARIABLE, "").encode()

    def begin(self, step: int) -> Path:
        """A new folder for files of a commit; ``finish`` makes them one."""
        self.discard_unfinished()
        folder = self.folder / f"{UNFINISHED}{step:08d}"
        folder.mkdir(parents=True)
        return folder

    def finish(self, step: int, unfinished: Path, files: Mapping[str, str], state: Mapping[str, Any]) -> Commit:
        """Make the files, whose sha256 are given and which are on the disk already, the commit of ``step``."""
        manifest: dict[str, Any] = {"format": FORMAT, "step": step, "state": dict(state), "files": dict(files)}
        if self._key:
            manifest["signature"] = _signature(manifest, self._key)
        write_flushed(unfinished / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        _flush_folder(unfinished)
        target = self.folder / f"{PREFIX}{step:08d}"
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
        _flush_folder(self.folder)
        pointer = self.folder / f".{LATEST}"
        write_flushed(pointer, target.name + "\n")
        pointer.rename(self.folder / LATEST)
        _flush_folder(self.folder)
        self._retire()
        return Commit(target, step, dict(state))

    def discard_unfinished(self) -> None:
        """Remove what a process that died, or a full disk, left half written."""
        for folder in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(folder)

    def newest(self) -> Commit | None:
        """The newest commit that is whole; damaged ones are set aside under another name, and said so.

        Raises:
            CommitError: one was not signed with the key, or is of another format. It is left where it is.
        """
        for folder in self._folders():
            try:
                return self.open(folder)
            except DamagedCommitError as error:
                aside = self._set_aside(folder, QUARANTINE)
                logging.getLogger(__name__).warning("%s; moved to %s, the commit before it is used", error, aside)
        return None

    def abandon_after(self, step: int) -> None:
        """Set commits of later steps aside: the run goes on from an earlier one."""
        for folder in self._folders():
            if int(folder.name.removeprefix(PREFIX)) > step:
                self._set_aside(folder, ABANDONED)

    def _set_aside(self, folder: Path, mark: str) -> Path:
        aside = self.folder / f"{mark}{folder.name}"
        if aside.exists():
            shutil.rmtree(aside)
        return folder.rename(aside)

    def open(self, folder: Path) -> Commit:
        """Check a commit's manifest, signature and files.

        Raises:
            CommitError: naming what is missing, altered or not signed.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            step, state, files = int(manifest["step"]), dict(manifest["state"]), dict(manifest["files"])
            form = manifest["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCommitError(f"commit '{folder}' has no usable {MANIFEST}: {error!r}") from error
        if form != FORMAT:
            raise CommitError(f"commit '{folder}' has format {form}, this version reads {FORMAT}")
        if self._key:
            signature = manifest.pop("signature", "")
            if not isinstance(signature, str) or not hmac.compare_digest(signature, _signature(manifest, self._key)):
                raise CommitError(f"commit '{folder}' is not signed with the key in {KEY_VARIABLE}")
        try:
            check_files(folder, files, MANIFEST)
        except ModelError as error:
            raise DamagedCommitError(f"commit '{folder}' is damaged: {error}") from error
        strangers = {file.name for file in folder.iterdir()} - set(files) - {MANIFEST}
        if strangers:
            raise DamagedCommitError(f"commit '{folder}' holds files that its manifest does not name: {sorted(strangers)[:3]}")
        return Commit(folder, step, state)

    def _folders(self) -> list[Path]:
        """Commits, newest first."""
        return sorted((f for f in self.folder.glob(f"{PREFIX}*") if f.is_dir()), reverse=True)

    def _retire(self) -> None:
        """Remove old commits: the last ``keep_last`` stay, and every ``keep_every``-th step's."""
        for folder in self._folders()[self._keep_last :]:
            step = int(folder.name.removeprefix(PREFIX))
            if not self._keep_every or step % self._keep_every:
                shutil.rmtree(folder)


def write_flushed(path: Path, text: str) -> None:
    """Write a text file and flush it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _signature(manifest: Mapping[str, Any], key: bytes) -> str:
    return hmac.new(key, json.dumps(manifest, sort_keys=True).encode(), hashlib.sha256).hexdigest()
