"""Folders that other users of a machine cannot enter."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dvpo_ray.errors import ConfigError

# To enter a folder is to execute it.
ENTERED_BY_OTHERS = stat.S_IXGRP | stat.S_IXOTH
WRITTEN_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def closed_folder_above(path: Path) -> Path | None:
    """The outermost folder on the way to ``path``, itself included, that only its owner can enter; None when there is none.

    None too where another user owns a folder on the way to it, or may put another in its place: what lies below is theirs to
    choose. The permissions of access control lists show in those of the group.
    """
    path = path.resolve()
    for folder in [*reversed(path.parents), path]:
        found = folder.stat()
        if found.st_uid not in (0, os.geteuid()):
            return None
        if not found.st_mode & ENTERED_BY_OTHERS:
            return folder
        if found.st_mode & WRITTEN_BY_OTHERS and not found.st_mode & stat.S_ISVTX:
            return None
    return None


def make_closed_folder(path: Path) -> None:
    """Make a folder that only this user can enter, or take one that is there.

    Raises:
        ConfigError: what is there is no folder, belongs to somebody else, or others can enter it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be made: {error.strerror}: name another folder") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(f"'{path}' is a link or belongs to another user of this machine: name a folder of your own")
    if closed_folder_above(path) is None:
        raise ConfigError(
            f"other users of this machine can enter or replace '{path}': run `chmod 700 {path}`, or name another folder"
        )
