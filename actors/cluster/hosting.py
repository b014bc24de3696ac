"""Where actors live: each in a process of its own, or for the length of a block in processes that are kept for the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import ray


class ActorHosts(Protocol):
    """Processes that outlive the actors in them, so that the next actor there imports nothing again."""

    def host(self, kind: type, name: str, environment: dict[str, str], options: dict[str, Any]) -> Any | None:
        """What ``start_actor`` returns for this kind of actor; None for one that is to have a process of its own."""

    def release(self, actor: Any) -> bool:
        """Keep the process of an actor that is no longer needed; False when it is none of these."""


_hosts: list[ActorHosts] = []


@contextmanager
def hosted(hosts: ActorHosts) -> Iterator[None]:
    """Within the block actors live in these processes, whichever thread starts them."""
    _hosts.append(hosts)
    try:
        yield
    finally:
        _hosts.remove(hosts)


def find_host(kind: type, name: str, environment: dict[str, str], options: dict[str, Any]) -> Any | None:
    """An actor class ready for ``.remote(...)`` whose process is kept; None outside of ``hosted``."""
    return _hosts[-1].host(kind, name, environment, options) if _hosts else None


def end_actor(actor: Any) -> None:
    """End an actor and its process, unless the process is kept for another."""
    if not any(hosts.release(actor) for hosts in _hosts):
        ray.kill(actor)
