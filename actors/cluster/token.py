"""Ray's token, which opens a cluster: from the environment or from a file, never from a command line."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from dvpo_ray.errors import RunError

TOKEN_FILE = Path.home() / ".ray" / "auth_token"
TOKEN_BYTES = 32  # as many as Ray takes
MODE = "RAY_AUTH_MODE"
TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def use_token() -> None:
    """Let Ray send the token, where there is one. It looks at the environment once, so this comes before Ray is imported.

    Raises:
        RunError: the environment asks for a token and there is none; Ray would abort the process.
    """
    protect_token()
    if any(os.environ.get(name) for name in TOKEN_VARIABLES) or TOKEN_FILE.is_file():
        os.environ.setdefault(MODE, "token")
    elif os.environ.get(MODE, "").lower() == "token":
        raise RunError(
            f"{MODE}=token, and there is no token: put the cluster's into RAY_AUTH_TOKEN, name its file in RAY_AUTH_TOKEN_PATH, "
            f"or copy it to '{TOKEN_FILE}'"
        )


def make_token() -> None:
    """Write the token of a Ray that is started here, for its owner alone, where there is none.

    Ray would write it by itself, readable for everyone until someone changes that.
    """
    if os.environ.get(MODE, "token").lower() == "token" and not any(os.environ.get(name) for name in TOKEN_VARIABLES):
        TOKEN_FILE.parent.mkdir(parents=True, exist_ok=True)
        # The file appears whole: another process that starts a Ray now must not read half a token.
        with tempfile.NamedTemporaryFile("w", dir=TOKEN_FILE.parent, prefix=".auth_token-") as file:  # made 0600
            file.write(secrets.token_hex(TOKEN_BYTES))
            file.flush()
            with suppress(FileExistsError):
                _link(Path(file.name))
    protect_token()


def protect_token() -> None:
    """Make Ray's own token file readable for its owner alone: Ray writes it readable for everyone on the machine."""
    if not TOKEN_FILE.is_file():
        return
    found = TOKEN_FILE.stat()
    # On a file system that cannot be written, one that is closed already must not be touched.
    if found.st_uid == os.getuid() and found.st_mode & 0o077:
        TOKEN_FILE.chmod(0o600)


def _link(file: Path) -> None:
    """Give the file the token's name too, or where there are no links, its content; FileExistsError when the name is taken."""
    try:
        os.link(file, TOKEN_FILE)
    except FileExistsError:
        raise
    except OSError:
        with os.fdopen(os.open(TOKEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
            target.write(file.read_text())
