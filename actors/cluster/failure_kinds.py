"""Permanent or transient: whether the same work fails in the same way when it is tried again."""

from __future__ import annotations

import builtins
import re
from enum import Enum

from dvpo_ray.io.remedies import remedy

# By the names of classes, with those they derive from: what a process only wrote in its log has no more.
PERMANENT = {
    *("TypeError", "ValueError", "LookupError", "AttributeError", "NameError", "ImportError", "SyntaxError", "AssertionError"),
    *("ArithmeticError", "NotImplementedError", "RecursionError"),
    *("ValidationError", "VLLMClientError", "VLLMValidationError", "SafetensorError"),
}
TRANSIENT = {"MemoryError", "OutOfMemoryError", "ConnectionError", "TimeoutError", "EOFError", "DistError", "ObjectLostError"}
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


class FailureKind(Enum):
    """Whether it helps to try again."""

    PERMANENT = "the same work fails in the same way again"
    UNKNOWN = "one more try will tell"
    TRANSIENT = "what it was due to may pass: memory, peers, connections"


def failure_kind(error: BaseException, text: str) -> FailureKind:
    """The kind of an exception of this process that has this text."""
    return _of({kind.__name__ for kind in type(error).__mro__}, text)


def failure_kind_of_text(text: str) -> FailureKind:
    """The kind of what another process wrote of its end: ``module.Type: message``, or what its fault handler said."""
    found = TYPE.match(text)
    name = found["name"] if found else ""
    kind = getattr(builtins, name, None)
    known = {one.__name__ for one in kind.__mro__} if isinstance(kind, type) else {name}
    return _of(known, text)


def sentence(text: str) -> str:
    """What two errors have in common that are the same: the first line without addresses, ids and other numbers."""
    return NUMBERS.sub("#", text.partition("\n")[0])


def _of(types: set[str], text: str) -> FailureKind:
    if MEMORY.search(text) or types & TRANSIENT:
        return FailureKind.TRANSIENT
    if types & PERMANENT or remedy(text):
        return FailureKind.PERMANENT
    return FailureKind.TRANSIENT if PEERS.search(text) else FailureKind.UNKNOWN
