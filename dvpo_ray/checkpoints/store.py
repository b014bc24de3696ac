"""Checkpoints: all that a run needs to go on, on disk whole or not at all.

A checkpoint is a folder ``step-00000010`` with tensors (safetensors, no pickles) and ``manifest.json``, which holds the driver's
state and the sha256 of every file. It is written under a temporary name, flushed to the disk, and renamed; then the file
``latest`` is moved to it. Nothing of a checkpoint is read before its manifest and all its files have been checked.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dvpo_ray.checkpoints.manifest import KEY_VARIABLE, LARGEST, manifest_text, read_manifest
from dvpo_ray.checkpoints.retention import Retention
from dvpo_ray.errors import CheckpointError, DamagedCheckpointError, ModelError
from dvpo_ray.io.disk import writing
from dvpo_ray.models.folder import MANIFEST, check_files

LATEST = "latest"
PREFIX, UNFINISHED, QUARANTINE, ABANDONED = "step-", ".unfinished-", "quarantine-", "abandoned-"
NAME = re.compile(PREFIX + r"([0-9]{8,15})")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: ``step`` steps are trained, ``state`` is the driver's."""

    folder: Path
    step: int
    state: dict[str, Any]

    @property
    def score(self) -> float | None:
        """The held-out score of its step, if it was evaluated."""
        return score_in(self.state)

    def part(self, name: str, kind: Any) -> Any:
        """A part of the state, of a type.

        Raises:
            CheckpointError: it is missing or of another type.
        """
        try:
            return TypeAdapter(kind).validate_python(self.state.get(name), strict=True)
        except ValidationError as error:
            raise CheckpointError(
                f"checkpoint '{self.folder}': state.{name}: {error.errors()[0]['msg']}; name another checkpoint"
            ) from error


class CheckpointStore:
    """The checkpoints of one run. One process writes; a lock on the run sees to that.

    Checkpoints whose steps are ``in_use`` stay, whatever ``keep_last`` and the others say.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int = 0, keep_best: int = 0) -> None:
        self.folder = folder
        self.key = os.environ.get(KEY_VARIABLE, "").encode()
        self.in_use: set[int] = set()
        self._retention = Retention(keep_last, keep_every, keep_best)

    def begin(self, step: int) -> Path:
        """A new folder for files of a checkpoint; ``finish`` makes them one."""
        self.discard_unfinished()
        folder = self.folder / f"{UNFINISHED}{step:08d}"
        folder.mkdir(parents=True)
        return folder

    def finish(self, step: int, unfinished: Path, files: Mapping[str, str], state: Mapping[str, Any]) -> Checkpoint:
        """Make the files, whose sha256 are given and which are on the disk already, the checkpoint of ``step``."""
        write_flushed(unfinished / MANIFEST, manifest_text(step, files, state, self.key))
        return self.place(unfinished, Checkpoint(unfinished, step, dict(state)))

    def place(self, unfinished: Path, checkpoint: Checkpoint) -> Checkpoint:
        """Make a folder whose files are on the disk, manifest included, the newest checkpoint, and let old ones go."""
        _flush_folder(unfinished)
        step = checkpoint.step
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
        return replace(checkpoint, folder=target)

    def discard_unfinished(self) -> None:
        """Remove what a process that died, or a full disk, left half written."""
        for folder in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(folder)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are set aside under another name, and said so.

        Raises:
            CheckpointError: one was not signed with the key, or is of another format. It is left where it is.
        """
        for folder in self._folders():
            try:
                return self.open(folder)
            except DamagedCheckpointError as error:
                aside = self._set_aside(folder, QUARANTINE)
                logging.getLogger(__name__).warning("%s; moved to %s, the checkpoint before it is used", error, aside)
        return None

    def abandon_after(self, step: int) -> None:
        """Set checkpoints of later steps aside: the run goes on from an earlier one."""
        for folder in self._folders():
            if step_of(folder.name) > step:
                self._set_aside(folder, ABANDONED)

    def _set_aside(self, folder: Path, mark: str) -> Path:
        aside = self.folder / f"{mark}{folder.name}"
        if aside.exists():
            shutil.rmtree(aside)
        return folder.rename(aside)

    def open(self, folder: Path) -> Checkpoint:
        """Check a checkpoint's manifest, signature and files.

        Raises:
            CheckpointError: naming what is missing, altered or not signed.
        """
        where = f"checkpoint '{folder}'"
        try:
            manifest = read_manifest(_read(folder / MANIFEST, where), where, self.key)
            strangers = {file.name for file in folder.iterdir()} - set(manifest.files) - {MANIFEST}
            strangers |= {name for name in manifest.files if (folder / name).is_symlink()}
            if strangers:
                raise DamagedCheckpointError(f"{where} holds what its manifest does not name, or links: {sorted(strangers)[:3]}")
            check_files(folder, manifest.files, MANIFEST)
        except ModelError as error:
            raise DamagedCheckpointError(f"{where} is damaged: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{where} cannot be read: {error}; make it readable, or name another checkpoint") from error
        if NAME.fullmatch(folder.name) and step_of(folder.name) != manifest.step:
            raise DamagedCheckpointError(f"{where} is under another name than that of its step, {manifest.step}")
        return Checkpoint(folder, manifest.step, manifest.state)

    def _folders(self) -> list[Path]:
        """Checkpoints, newest first."""
        found = [f for f in self.folder.glob(f"{PREFIX}*") if NAME.fullmatch(f.name) and f.is_dir() and not f.is_symlink()]
        return sorted(found, key=lambda folder: step_of(folder.name), reverse=True)

    def _retire(self) -> None:
        """Remove the checkpoints that need not stay."""
        folders = {step_of(folder.name): folder for folder in self._folders()}
        scores = {step: self._score(folder) if self._retention.best else None for step, folder in folders.items()}
        for step in set(folders) - self._retention.kept(scores) - self.in_use:
            shutil.rmtree(folders[step])

    def _score(self, folder: Path) -> float | None:
        """The score of a checkpoint; a damaged one, which is never gone on from, has none."""
        where = f"checkpoint '{folder}'"
        try:
            return score_in(read_manifest(_read(folder / MANIFEST, where), where, self.key).state)
        except CheckpointError as error:
            logging.getLogger(__name__).warning("%s; it is not among the best", error)
            return None


def score_in(state: Mapping[str, Any]) -> float | None:
    """The held-out score in a checkpoint's state, when there is a finite one."""
    score = state.get("score")
    return score if isinstance(score, float) and math.isfinite(score) else None


def step_of(name: str) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(name.removeprefix(PREFIX))


def _read(manifest: Path, where: str) -> bytes:
    try:
        if manifest.stat().st_size > LARGEST:
            raise DamagedCheckpointError(f"{where} has a manifest of more than {LARGEST:,} bytes")
        return manifest.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DamagedCheckpointError(f"{where} has no manifest: {error}") from error


def write_flushed(path: Path, text: str) -> None:
    """Write a text file and flush it to the disk."""
    with writing(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
