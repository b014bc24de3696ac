"""When to add or remove a replica, by how long work has waited: decisions alone, no processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Load:
    """The work given to one replica: when each piece still under way was sent, oldest first, and since when it has none.

    A replica does one piece at a time, so all but the first wait.
    """

    sent: list[float] = field(default_factory=list)
    idle_since: float | None = 0.0


def least_loaded(loads: Sequence[Load]) -> int:
    """Index of the replica with the least work; of several, the first, so that the last ones become idle."""
    return min(range(len(loads)), key=lambda i: len(loads[i].sent))


def queue_age(loads: Sequence[Load], now: float) -> float:
    """How long the oldest piece of work that no replica has begun has waited, in seconds; 0 when none waits."""
    return max((now - load.sent[1] for load in loads if len(load.sent) > 1), default=0.0)


def to_remove(loads: Sequence[Load], now: float, least: int, idle_s: float) -> int | None:
    """Index of a replica that has had no work for ``idle_s`` seconds, the last one first; None when it is needed."""
    if len(loads) <= least:
        return None
    for i in range(len(loads) - 1, -1, -1):
        since = loads[i].idle_since
        if since is not None and now - since >= idle_s:
            return i
    return None
