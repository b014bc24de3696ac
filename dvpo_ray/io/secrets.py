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
# What names of secrets hold, as whole words; TOKENIZERS_PARALLELISM is none, nor is what names a file that holds one.
SECRET_WORDS = r"(?:TOKEN|SECRET|PASSWORD|PASSPHRASE|CREDENTIALS?|(?:API|CHECKPOINT|PRIVATE|ACCESS)_?KEY)"
SECRET_NAME = re.compile(rf"(?:^|_){SECRET_WORDS}(?!\w*_(?:PATH|FILE)$)(?:_|$)", re.IGNORECASE)
URL = re.compile(r"([A-Za-z][\w+.-]{0,20}://)\S+")
# Longer ones are data of some kind, and are not shown.
LONGEST_URL = 2000


def names_a_secret(variable: str) -> bool:
    """Whether an environment variable of this name holds a secret, as far as names tell."""
    return SECRET_NAME.search(variable) is not None


def masked(text: str) -> str:
    """The text; of URLs in it that hold a secret only the scheme."""
    return URL.sub(lambda found: f"{found[1]}**redacted**" if _is_secret(found[0]) else found[0], text)


def _is_secret(url: str) -> bool:
    return len(url) > LONGEST_URL or CREDENTIALS.search(url) is not None
