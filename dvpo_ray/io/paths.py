"""Names of files and folders as people write them: `~` and `$VAR` stand for what they mean on this machine."""

from __future__ import annotations

import os
import re

# What is left of the beginning of a URL in the name of a path; a drive has one letter.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")


def expanded(text: str) -> str:
    """The name with the home folder and all environment variables filled in.

    Raises:
        ValueError: naming a variable that is not set, or a user who has no home folder.
    """
    for braced, plain in VARIABLE.findall(text):
        if (braced or plain) not in os.environ:
            raise ValueError(f"'{text}': the environment variable '{braced or plain}' is not set: set it, or write the name out")
    found = os.path.expanduser(VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text))
    if found.startswith("~"):
        raise ValueError(f"'{text}': there is no home folder '{found.partition('/')[0]}': write the name out")
    return found


def refuse_url(text: str) -> None:
    """Refuse a URL where a file or folder of this machine is meant: it would be taken for a folder called ``s3:``.

    Raises:
        ValueError: it is one.
    """
    if URL.match(text):
        raise ValueError(
            f"'{text}' is a URL, and what is written there lies in the file system: give a folder that is mounted on this "
            "machine (checkpoint.copy_to takes URLs, and copies each checkpoint there)"
        )
