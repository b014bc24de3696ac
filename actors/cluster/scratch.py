"""A temporary folder for as long as a process lives; those of processes that were killed are removed by the next one."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Locked by the process whose folder it is. The lock goes with the process, however it ends, and is seen from other containers.
IN_USE = "in-use"


@contextmanager
def scratch_dir(prefix: str) -> Iterator[str]:
    """A new folder whose name begins with ``prefix``, among the temporary files, for the length of the block."""
    clear_abandoned(prefix)
    # It gets its name when it is locked: one by that name that is not locked is nobody's.
    unnamed = Path(tempfile.mkdtemp(prefix=f".{prefix}"))
    folder = unnamed.with_name(unnamed.name[1:])
    with (unnamed / IN_USE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unnamed.rename(folder)
        try:
            yield str(folder)
        finally:
            # What cannot be removed, because something still writes there, is left for the next process.
            shutil.rmtree(folder, ignore_errors=True)


def clear_abandoned(prefix: str) -> None:
    """Remove the folders whose processes are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        try:
            with (folder / IN_USE).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # in use, not of this kind, or somebody else's
