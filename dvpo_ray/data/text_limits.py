"""How long a text can be at most for so many tokens: what is longer is refused before a tokenizer spends minutes on it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from dvpo_ray.data.reasons import BadRow, Reason

# Of a token, where all of the vocabulary's are shorter: a text's own white space may be dropped before it is cut into tokens.
LONGEST_AT_LEAST = 64


@lru_cache(maxsize=4)
def longest_token(tokenizer: Any) -> int:
    """Characters of the longest token of a vocabulary."""
    return max(LONGEST_AT_LEAST, *map(len, tokenizer.get_vocab()))


def refuse_what_cannot_fit(tokenizer: Any, texts: Iterable[str], limit: int, name: str) -> None:
    """Refuse texts that together have more characters than ``limit`` tokens can hold.

    Raises:
        BadRow: too long.
    """
    characters = sum(map(len, texts))
    if characters > limit * longest_token(tokenizer):
        raise BadRow(Reason.TOO_LONG, f"{name} has {characters:,} characters, more than {limit} tokens, the limit, can hold")


def cut_to_fit(tokenizer: Any, text: str, limit: int) -> str | None:
    """The beginning of a text that has more characters than ``limit`` tokens can hold, long enough for these; None of others."""
    most = limit * longest_token(tokenizer)
    # The tokens next to the cut may not be those of the whole text, so it is made far behind those that count.
    return text[: 2 * most] if len(text) > most else None
