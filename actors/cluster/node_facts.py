"""What the nodes of each role can do, asked of the nodes themselves before any actor starts."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.calls import get
from actors.cluster.nodes import this_node
from actors.cluster.session import ray_session
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.planning.device_defaults import ROLES
from dvpo_ray.planning.node_facts import NodeFacts, measure_node

# Facts of a node do not change while it lives.
_KNOWN: dict[str, NodeFacts] = {}
# Ray would hide a node's GPUs from a task that reserves none.
SEE_GPUS = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}


def nodes_by_role(cluster: ClusterSection) -> dict[str, list[NodeFacts]]:
    """Facts of the nodes that each role's actors may be placed on now.

    An embedded Ray is this machine, so it need not run for that.
    """
    if not cluster.address and not ray.is_initialized():
        return {role: [measure_node()] for role in ROLES}
    with ray_session(cluster):
        alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        # Actors of every role reserve a share of a GPU as soon as the cluster has one.
        if any(node["Resources"].get("GPU", 0) for node in alive):
            alive = [node for node in alive if node["Resources"].get("GPU", 0)]
        ids = {role: [node["NodeID"] for node in alive if _has_role(node, role, cluster)] for role in ROLES}
        facts = _facts(sorted({node for found in ids.values() for node in found}), cluster)
        return {role: [facts[node] for node in found] for role, found in ids.items()}


def _has_role(node: dict[str, Any], role: str, cluster: ClusterSection) -> bool:
    return cluster.role_label is None or node.get("Labels", {}).get(cluster.role_label) == role


def _measure() -> NodeFacts:
    """``measure_node`` as a plain function: Ray takes no other."""
    return measure_node()


def _facts(nodes: list[str], cluster: ClusterSection) -> dict[str, NodeFacts]:
    here = this_node()
    asked: dict[str, Any] = {}
    for node in nodes:
        if node == here:
            _KNOWN[node] = measure_node()
        elif node not in _KNOWN:
            where = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            asked[node] = ray.remote(_measure).options(num_cpus=0, scheduling_strategy=where, runtime_env=SEE_GPUS).remote()
    answers = get(list(asked.values()), cluster.start_timeout_s, "a node", "measuring what it multiplies fast")
    _KNOWN.update(zip(asked, answers, strict=True))
    return {node: _KNOWN[node] for node in nodes}


def doubt(who: str, dtype: str) -> list[str]:
    """What is wrong with computing in this number type on this node: a node may have come after the choice was made, or the
    recipe chose against it."""
    if dtype != "bfloat16" or (facts := measure_node()).multiplies_bfloat16:
        return []
    return [f"{who} computes in bfloat16 on a node where that is slow ({facts.why}): set its dtype to auto or float32"]
