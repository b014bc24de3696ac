"""Machines that are about to be taken away: a preemption, or a scale-down, of which Ray was told beforehand."""

from __future__ import annotations

from collections.abc import Iterable

import ray
from ray._private import state


def draining(nodes: Iterable[str]) -> bool:
    """Whether any of these Ray nodes (ids) is being drained. Ray has no public call for it; Ray Train asks in the same way."""
    return not set(nodes).isdisjoint(state.state.get_draining_nodes())


def this_node() -> str:
    """Id of the Ray node this process is on."""
    return ray.get_runtime_context().get_node_id()


def this_actor() -> str:
    """Name of the Ray actor this process is."""
    name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else None
    return name or "this process"
