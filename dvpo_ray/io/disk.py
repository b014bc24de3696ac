"""Files written where room may end: whole or not at all, line by line, and one sentence when there is no more."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from dvpo_ray.errors import DiskFullError, DvpoError

FULL = (errno.ENOSPC, errno.EDQUOT)
# Libraries that are not written in Python tell it in their own errors.
SAID = re.compile(r"No space left on device|Disk quota exceeded|os error (?:28|122)\b")
GB = 1e9


def is_full(error: BaseException) -> bool:
    """Whether an error is that there is no room."""
    return (isinstance(error, OSError) and error.errno in FULL) or bool(SAID.search(str(error)))


def full(path: Path) -> DiskFullError:
    """The error that says that a file or folder cannot be written for want of room, and what to do."""
    folder = next(one for one in [path, *path.absolute().parents] if one.is_dir())
    disk = os.statvfs(folder)
    free, whole = disk.f_bavail * disk.f_frsize / GB, disk.f_blocks * disk.f_frsize / GB
    left = (
        "no more files can be made on its disk"
        if disk.f_files and not disk.f_favail
        else f"{free:.3g} GB of {whole:.3g} are free"
    )
    return DiskFullError(
        f"no room to write '{path}' ({left}): make room there, or name another place, and give the same command again; a run "
        "goes on with --resume auto"
    )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell want of room in the block as that for ``path``.

    Raises:
        DiskFullError: there was none.
    """
    try:
        yield
    except DvpoError:
        raise
    except Exception as error:
        if not is_full(error):
            raise
        raise full(path) from error


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all; one that is there stays until then.

    Raises:
        DiskFullError: there is no room for it.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with writing(path):
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    return path


class LineFile:
    """A file that lines are added to, each of them whole or not at all and out of this process when ``add`` returns."""

    def __init__(self, path: Path) -> None:
        """Raises DiskFullError when there is no room for a new file."""
        self.path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)

    def add(self, *lines: str) -> None:
        """Add lines, without their ends.

        Raises:
            DiskFullError: there is no room for them; the file is as it was.
        """
        rest = memoryview("".join(f"{line}\n" for line in lines).encode())
        before = os.fstat(self._file.fileno()).st_size
        try:
            with writing(self.path):
                while rest:
                    rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(before)
            raise

    def flush_to_disk(self) -> None:
        """Wait until the disk has it all."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """No more is added."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
