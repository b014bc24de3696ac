"""Names of files and folders as people write them: `~` and `$VAR` stand for what they mean on this machine."""

from __future__ import annotations

import os
import re

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
