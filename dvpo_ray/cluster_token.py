"""Ray's token, which opens a cluster: from the environment or from a file, never from a command line."""

from __future__ import annotations

import os
from pathlib import Path

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
MODE = "RAY_AUTH_MODE"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def use_token() -> None:
    """Let Ray send the token, where there is one. It looks at the environment once, so this comes before Ray is imported."""
    protect_token()
    if any(os.environ.get(name) for name in TOKEN_VARIABLES) or TOKEN_FILE.is_file():
        os.environ.setdefault(MODE, "token")


def protect_token() -> None:
    """Make Ray's own token file readable for its owner alone: Ray writes it readable for everyone on the machine."""
    if TOKEN_FILE.is_file() and TOKEN_FILE.stat().st_uid == os.getuid():
        TOKEN_FILE.chmod(0o600)
