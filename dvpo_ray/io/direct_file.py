"""Large files written past the page cache, where the file system allows it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Self

# A multiple of every block size that disks ask for.
BUFFER = 16 * 2**20
DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """A new file, written from its beginning to its end and flushed to the disk when the block ends without an error.

    A checkpoint of gigabytes would fill the page cache with what nobody reads: finding that much memory may take several times as
    long as the disk does, and the cores of whoever trains meanwhile. So data pass through one aligned buffer straight to the
    disk; on file systems that refuse this (tmpfs, some network ones) they are written as usual.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags | DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._file = os.open(path, flags, 0o666)
        self._buffer = mmap.mmap(-1, BUFFER)
        self._used = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self._flush()
                os.fsync(self._file)
        finally:
            os.close(self._file)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        rest = memoryview(data).cast("B")
        while rest:
            taken = min(len(rest), BUFFER - self._used)
            self._buffer[self._used : self._used + taken] = rest[:taken]
            self._used += taken
            rest = rest[taken:]
            if self._used == BUFFER:
                self._flush()

    def _flush(self) -> None:
        """Write what the buffer holds."""
        with memoryview(self._buffer) as buffer:
            done = 0
            while done < self._used:
                try:
                    done += os.write(self._file, buffer[done : self._used])
                except OSError as error:
                    # The file system takes no direct writes, or not this one: a file's last block is hardly ever a whole one.
                    if error.errno != errno.EINVAL or not self._is_direct():
                        raise
                    self._write_as_usual()
        self._used = 0

    def _is_direct(self) -> bool:
        return bool(fcntl.fcntl(self._file, fcntl.F_GETFL) & DIRECT)

    def _write_as_usual(self) -> None:
        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) & ~DIRECT)
