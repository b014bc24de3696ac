"""Whether the same work fails in the same way when it is tried again."""

from __future__ import annotations

import builtins
import re
from enum import Enum

from dvpo_ray.io.remedies import remedy

# By the names of classes, with those they derive from: what a process only wrote in its log has no more.
CERTAIN = {
    *("TypeError", "ValueError", "LookupError", "AttributeError", "NameError", "ImportError", "SyntaxError", "AssertionError"),
    *("ArithmeticError", "NotImplementedError", "RecursionError"),
    *("ValidationError", "VLLMClientError", "VLLMValidationError", "SafetensorError"),
}
PASSING = {"MemoryError", "OutOfMemoryError", "ConnectionError", "TimeoutError", "EOFError", "DistError", "ObjectLostError"}
# Of errors of any class: memory that others may give back. Allocators say it in RuntimeErrors, vLLM in a ValueError.
MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|Free memory on device|Error in memory profiling|bad_alloc|No space left",
    re.IGNORECASE,
)
# Of RuntimeErrors and the like: what the peers of a process that is gone say.
PEERS = re.compile(
    r"connection \w*\s*(closed|reset|refused|aborted|lost)|broken pipe|timed? ?out|address already in use|gloo|NCCL|"
    r"remote process exited|\bpeers?\b|heartbeat",
    re.IGNORECASE,
)
TYPE = re.compile(r"^(?:[\w]+\.)*(?P<name>[A-Za-z_]\w*)(?::|$)")
NUMBERS = re.compile(r"0x[0-9a-f]+|\d+", re.IGNORECASE)


class Recurrence(Enum):
    """Of a failure."""

    CERTAIN = "the same work fails in the same way again"
    UNKNOWN = "one more try will tell"
    PASSING = "what it was due to may pass: memory, peers, connections"


def recurrence(error: BaseException, text: str) -> Recurrence:
    """Of an exception of this process that has this text."""
    return _of({kind.__name__ for kind in type(error).__mro__}, text)


def recurrence_of_text(text: str) -> Recurrence:
    """Of an exception that another process wrote down, as ``module.Type: message``, or of what its fault handler wrote."""
    found = TYPE.match(text)
    name = found["name"] if found else ""
    kind = getattr(builtins, name, None)
    known = {one.__name__ for one in kind.__mro__} if isinstance(kind, type) else {name}
    return _of(known, text)


def sentence(text: str) -> str:
    """What two errors have in common that are the same: the first line without addresses, ids and other numbers."""
    return NUMBERS.sub("#", text.partition("\n")[0])


def _of(types: set[str], text: str) -> Recurrence:
    if MEMORY.search(text) or types & PASSING:
        return Recurrence.PASSING
    if types & CERTAIN or remedy(text):
        return Recurrence.CERTAIN
    return Recurrence.PASSING if PEERS.search(text) else Recurrence.UNKNOWN
