"""A zip archive whose bytes depend on what is in it alone, and that may not grow beyond a limit."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from dvpo_ray.errors import ConfigError
from dvpo_ray.io.disk import writing

MIB = 2**20


class Archive:
    """An archive that is written. What is hidden (`.git`, `.env`) and what Python compiled stays out of folders."""

    def __init__(self, path: Path, limit: int) -> None:
        """``limit``: most bytes the archive may have."""
        self._path = path
        self._limit = limit
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._held: dict[str, Path | None] = {}
        self._sizes: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._zip.close()
        if kind is None:
            self._check_size()

    def add_text(self, name: str, text: str) -> None:
        """Put a text in under a name."""
        self._zip.writestr(self._entry(name, None), text)

    def add(self, name: str, path: Path, within: Path | None = None) -> None:
        """Put a file in under a name, or a folder's files under names below it. Links may lead to files ``within`` a folder, or
        without one to any.

        Raises:
            ConfigError: the archive gets too large, holds another file of that name, a file or folder cannot be read, or a link
                leads elsewhere.
        """
        try:
            for file in sorted(_files(path)):
                if within is not None:
                    _refuse_leading_out(file, within)
                inner = name if file == path else f"{name}/{file.relative_to(path).as_posix()}"
                if self._held.get(inner) != file.resolve():
                    self._write(self._entry(inner, file.resolve()), file)
        except (OSError, UnicodeEncodeError) as error:
            raise ConfigError(f"'{name}' cannot go along: {error}: correct its permissions or names, or leave it out") from error

    def _write(self, entry: zipfile.ZipInfo, file: Path) -> None:
        before = self._path.stat().st_size
        entry.file_size = file.stat().st_size  # what is written is longer than a plain entry holds if this is
        with writing(self._path), file.open("rb") as source, self._zip.open(entry, "w") as target:
            for piece in iter(partial(source.read, MIB), b""):
                target.write(piece)
                self._sizes[entry.filename] = self._path.stat().st_size - before
                self._check_size()

    def _entry(self, name: str, source: Path | None) -> zipfile.ZipInfo:
        if name in self._held:
            raise ConfigError(f"'{name}' would be in the job's package twice: rename the one that is yours")
        self._held[name] = source
        entry = zipfile.ZipInfo(name)
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.external_attr = 0o644 << 16
        return entry

    def _check_size(self) -> None:
        size = self._path.stat().st_size
        if size > self._limit:
            largest = max(self._sizes, key=lambda name: self._sizes[name], default=next(iter(self._held)))
            raise ConfigError(
                f"the job's package is larger than the {self._limit / MIB:.1f} MiB that the cluster takes, packed; most of it is "
                f"'{largest}': copy it to where the cluster's machines see it and give its absolute path"
            )


def _refuse_leading_out(file: Path, within: Path) -> None:
    """Refuse a file that a link stands for, itself or above it, whose target would not go along by itself.

    Raises:
        ConfigError: naming the link.
    """
    link = next((one for one in [file, *file.parents] if one.is_symlink()), None)
    if link is None:
        return
    target, root = file.resolve(), within.resolve()
    if not target.is_file():
        problem = "leads to no file"
    elif not target.is_relative_to(root):
        problem = f"leads out of {root}"
    elif any(part.startswith(".") for part in target.relative_to(root).parts):
        problem = "leads to a hidden file"
    else:
        return
    raise ConfigError(
        f"'{link}' is a link that {problem}, to '{target}', whose content would go to the cluster under its name: put the file "
        "itself there if it is to go along, or remove the link"
    )


def _files(path: Path) -> Iterator[Path]:
    """A file, or those in a folder and below, all links among them; links to folders are not followed.

    Raises:
        OSError: a folder cannot be read.
    """
    if path.is_file():
        yield path
        return

    def refuse(error: OSError) -> None:
        raise error

    for folder, inner, files in os.walk(path, onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        linked = [name for name in inner if (Path(folder) / name).is_symlink()]
        named = [Path(folder) / name for name in [*files, *linked] if not name.startswith(".")]
        yield from (file for file in named if file.is_file() or file.is_symlink())
