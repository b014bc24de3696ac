"""Secrets in texts: how URLs hold them, and texts without them."""

from __future__ import annotations

import re

# What shows that a URL holds a secret. A password may hold slashes; digits before the first slash are a port.
CREDENTIALS = re.compile(
    r"""://(?!\[)[^/@\s]*:(?!\d{1,5}(?:[/?\#]|$))[^@\s]+@               # a password
      | https?://[^/?\#@\s]+@                                         # a token in the place of a user: git hosts take it
      | ://\S*[?&;\#](?:
            [^=&?;\#\s]*(?:token|key|secret|passw|signature|credential|authoriz)[^=&?;\#\s]*
          | (?:[^=&?;\#\s]*[-_.])?(?:auth|code|jwt|pass|pwd|sas|sig)(?:[-_.][^=&?;\#\s]*)?
        )=""",
    re.IGNORECASE | re.VERBOSE,
)
URL = re.compile(r"([A-Za-z][\w+.-]{0,20}://)\S+")
# Longer ones are data of some kind, and are not shown.
LONGEST_URL = 2000


def masked(text: str) -> str:
    """The text; of URLs in it that hold a secret only the scheme."""
    return URL.sub(lambda found: f"{found[1]}**redacted**" if _is_secret(found[0]) else found[0], text)


def _is_secret(url: str) -> bool:
    return len(url) > LONGEST_URL or CREDENTIALS.search(url) is not None
