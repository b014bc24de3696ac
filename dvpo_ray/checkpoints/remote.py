"""Where checkpoints are copied to: a folder on any file system that fsspec knows, seen as checkpoints that are whole or absent.

The pieces of a checkpoint come first, then its manifest, then the pointer ``latest``; a folder without a manifest is no
checkpoint. It is removed the other way round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fsspec.core import url_to_fs

from dvpo_ray.checkpoints.manifest import LARGEST, Manifest, read_manifest
from dvpo_ray.checkpoints.store import LATEST, NAME, PREFIX, Checkpoint, CheckpointStore, step_of
from dvpo_ray.config.loading import CONFIG
from dvpo_ray.errors import CheckpointError, ConfigError, DamagedCheckpointError, DvpoError
from dvpo_ray.io.disk import writing
from dvpo_ray.models.folder import MANIFEST, flush_file
from dvpo_ray.runs.folder import restore_records

PROBE = ".dvpo-ray-was-here"


class RemoteStore:
    """The checkpoints of one run at a URL. Every method raises CheckpointError when the file system there fails."""

    def __init__(self, url: str) -> None:
        """Open the target and write to it, to see that it can be reached.

        Raises:
            ConfigError: naming the package to install, or what is wrong with the target.
        """
        self.url = url
        try:
            self._fs, root = url_to_fs(url)
        except ImportError as error:
            raise ConfigError(f"checkpoint.copy_to = '{url}': the package for this kind of URL is missing: {error}") from error
        except ValueError as error:
            raise ConfigError(f"checkpoint.copy_to = '{url}': {error}; give a URL such as s3://BUCKET/RUN") from error
        self._root = root.rstrip("/")
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{PROBE}", b"")
            self._fs.rm_file(f"{self._root}/{PROBE}")
        except Exception as error:  # every file system has errors of its own
            raise ConfigError(
                f"checkpoint.copy_to = '{url}' cannot be written: {error!r}; mend the target or its credentials, or leave "
                "copy_to out"
            ) from error

    def steps(self) -> list[int]:
        """Steps of the checkpoints there, newest first."""
        with self._reaching():
            self._fs.invalidate_cache()
            try:
                paths = self._fs.ls(self._root, detail=False)
            except FileNotFoundError:  # an object store has no empty folders
                return []
            names = {path.rstrip("/").rpartition("/")[2] for path in paths}
            found = [step_of(name) for name in names if NAME.fullmatch(name)]
            return sorted((step for step in found if self._fs.isfile(f"{self._folder(step)}/{MANIFEST}")), reverse=True)

    def manifest(self, step: int, key: bytes) -> Manifest:
        """The manifest of a checkpoint, checked as by ``read_manifest``."""
        return self._manifest(step, key)[0]

    def put(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint; what an earlier copy of the step left there goes first."""
        self.remove(checkpoint.step)
        folder = self._folder(checkpoint.step)
        with self._reaching():
            self._fs.makedirs(folder, exist_ok=True)
            pieces = [file for file in sorted(checkpoint.folder.iterdir()) if file.name != MANIFEST]
            for file in [*pieces, checkpoint.folder / MANIFEST]:
                self._fs.put_file(str(file), f"{folder}/{file.name}")
            self._fs.pipe_file(f"{self._root}/{LATEST}", (checkpoint.folder.name + "\n").encode())

    def remove(self, step: int) -> None:
        """Remove what there is of a checkpoint."""
        folder = self._folder(step)
        with self._reaching():
            if self._fs.exists(f"{folder}/{MANIFEST}"):
                self._fs.rm_file(f"{folder}/{MANIFEST}")
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

    def fetch_newest(self, store: CheckpointStore, run: Path, check: Callable[[Path], None], after: int = 0) -> Checkpoint | None:
        """The newest whole checkpoint there of a step later than ``after``, brought into ``store``, with the run's records in it.

        A damaged one is left where it is, said so, and the one before is taken. ``check`` is given the settings that it was
        made under, before anything of ``store`` or ``run`` changes.

        Raises:
            CheckpointError: one was not signed with the key, or is of another format.
        """
        for step in self.steps():
            if step <= after:
                break
            try:
                return self._fetch(step, store, run, check)
            except DamagedCheckpointError as error:
                logging.getLogger(__name__).warning("%s; the copy before it is used", error)
        return None

    def _fetch(self, step: int, store: CheckpointStore, run: Path, check: Callable[[Path], None]) -> Checkpoint:
        manifest, text = self._manifest(step, store.key)
        unfinished = store.begin(step)
        try:
            for name in manifest.files:
                with self._reaching():
                    self._get(step, name, unfinished / name)
            with writing(unfinished / MANIFEST):
                (unfinished / MANIFEST).write_bytes(text)
                flush_file(unfinished / MANIFEST)
            checkpoint = store.open(unfinished)
            if not (unfinished / CONFIG).is_file():
                raise DamagedCheckpointError(f"{self._where(step)} holds no {CONFIG}, without which a run cannot go on elsewhere")
            check(unfinished / CONFIG)
            restore_records(unfinished, run)
            return store.place(unfinished, checkpoint)
        finally:
            store.discard_unfinished()

    def _get(self, step: int, name: str, to: Path) -> None:
        try:
            with writing(to):
                self._fs.get_file(f"{self._folder(step)}/{name}", str(to))
        except FileNotFoundError as error:
            raise DamagedCheckpointError(f"{self._where(step)} lacks {name}") from error
        flush_file(to)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except DvpoError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise CheckpointError(f"the copies at '{self.url}' cannot be reached: {error!r}") from error

    def _manifest(self, step: int, key: bytes) -> tuple[Manifest, bytes]:
        where = self._where(step)
        with self._reaching():
            text = self._fs.cat_file(f"{self._folder(step)}/{MANIFEST}", start=0, end=LARGEST + 1)
        if len(text) > LARGEST:
            raise DamagedCheckpointError(f"{where} has a manifest of more than {LARGEST:,} bytes")
        manifest = read_manifest(text, where, key)
        if manifest.step != step:
            raise DamagedCheckpointError(f"{where} is under another name than that of its step, {manifest.step}")
        return manifest, text

    def _where(self, step: int) -> str:
        return f"checkpoint '{self.url.rstrip('/')}/{PREFIX}{step:08d}'"

    def _folder(self, step: int) -> str:
        return f"{self._root}/{PREFIX}{step:08d}"
