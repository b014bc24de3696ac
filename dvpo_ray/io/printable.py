"""Text of others on its way to a terminal, which takes some characters for orders: to clear the screen, to name a window, to
write from right to left."""

from __future__ import annotations

import re

# C0 and C1 but for tab and line feed, what changes the direction of writing, and lone surrogates, which cannot be printed.
ORDERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with such characters spelled out: ``\x1b[2J`` as four characters and ``[2J``. A line end of two is one."""
    return ORDERS.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))
