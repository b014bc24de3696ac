"""What another user of this machine gets at of a Ray's session: `python -m tests.support.another_user SESSION`, as root."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

NOBODY = 65534


def reached(session: Path) -> list[str]:
    """Folders that can be listed, files that can be written, and sockets that can be reached."""
    found = []
    for name in (".", "runtime_resources", "logs"):
        with suppress(PermissionError):
            os.listdir(session / name)
            found.append(f"lists {name}")
        with suppress(PermissionError):
            (session / name / "mine").touch()
            found.append(f"writes {name}")
    for name in ("raylet", "plasma_store"):
        with socket.socket(socket.AF_UNIX) as door, suppress(PermissionError):
            door.connect(str(session / "sockets" / name))
            found.append(f"reaches {name}")
    return found


if __name__ == "__main__":
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    print(json.dumps(reached(Path(sys.argv[1]))))
