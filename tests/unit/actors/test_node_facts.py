"""Which nodes a role's actors may be on, what these can do, and what an actor says of the node it is on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from actors.cluster import node_facts
from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.config import ValueRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import CheckpointError
from dvpo_ray.planning.device_defaults import ROLES
from dvpo_ray.planning.node_facts import NodeFacts
from jobs import models
from jobs.models import base_model, settle_devices

FAST = NodeFacts("fast CPU", False, 3.0, 64e9, 100.0)
SLOW = NodeFacts("slow CPU", False, 0.13, 24e9, 138.0)


def node(name: str, cpu: int = 4, gpu: int = 0, alive: bool = True, **labels: str) -> dict[str, Any]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpu, "GPU": gpu}, "Labels": labels}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes Ray a cluster of the nodes given, whose facts are their names."""

    def make(*nodes: dict[str, Any]) -> None:
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", lambda: list(nodes))
        monkeypatch.setattr(node_facts, "_facts", lambda ids, cluster: {name: name for name in ids})

    return make


def test_actors_may_be_on_every_node_that_lives_and_computes(cluster: Any) -> None:
    cluster(node("a"), node("head", cpu=0), node("dead", alive=False), node("b"))
    assert node_facts.nodes_by_role(ClusterSection()) == {role: ["a", "b"] for role in ROLES}


def test_actors_go_to_gpus_where_there_are_any_and_to_their_role(cluster: Any) -> None:
    cluster(node("cpu"), node("g1", gpu=8, kind="learner"), node("g2", gpu=1, kind="rollout"))
    assert node_facts.nodes_by_role(ClusterSection())["scorer"] == ["g1", "g2"]
    found = node_facts.nodes_by_role(ClusterSection(role_label="kind"))
    assert found == {"learner": ["g1"], "scorer": [], "rollout": ["g2"]}


def test_ray_takes_the_measurement_as_a_task() -> None:
    """On a node that is not the driver's, as on every cluster whose head computes nothing, it is one."""
    assert callable(ray.remote(node_facts._measure).options(num_cpus=0).remote)


def test_an_actor_says_when_its_number_type_is_slow_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_facts, "measure_node", lambda: SLOW)
    assert node_facts.doubt("a scorer", "float32") == []
    assert node_facts.doubt("a scorer", "bfloat16") == [
        "a scorer computes in bfloat16 on a node where that is slow (bfloat16 at 0.13 times the speed of float32 on slow CPU): "
        "set its dtype to auto or float32"
    ]
    monkeypatch.setattr(node_facts, "measure_node", lambda: FAST)
    assert node_facts.doubt("a scorer", "bfloat16") == []


def test_a_resumed_run_keeps_its_number_types_on_another_machine(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"model": {"path": str(tiny_model)}, "value": {"data": {"source": "x.jsonl"}}}
    recipe = build(ValueRecipe, tree)
    base = base_model(recipe.model)
    monkeypatch.setattr(models, "nodes_by_role", lambda cluster: {"learner": [SLOW]})
    assert settle_devices(recipe, base)[1].number_types == {"learner": "float32"}
    checkpoint = Checkpoint(Path("step-00000001"), 1, {"number_types": {"learner": "bfloat16"}})
    settled, chosen = settle_devices(recipe, base, checkpoint)
    assert chosen.number_types == {"learner": "bfloat16"} and settled.value.learner.dtype == "bfloat16"
    with pytest.raises(CheckpointError, match="number_types"):
        settle_devices(recipe, base, Checkpoint(Path("step-00000001"), 1, {"number_types": 3}))
