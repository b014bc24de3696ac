"""The Dockerfile as its instructions."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
# Whether its instructions can be carried out in a bare Debian here.
CAN = os.geteuid() == 0 and shutil.which("debootstrap") is not None


def stages() -> list[list[tuple[str, str]]]:
    """(instruction, arguments) in order, for what stands before the first FROM and then for each stage.

    Lines that go on are joined, and comments between them left out, as Docker does.
    """
    text = re.sub(r"\\\n(?:\s*#.*\n)*", " ", DOCKERFILE.read_text())
    found: list[list[tuple[str, str]]] = [[]]
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, arguments = line.partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, arguments))
    return found
