"""What actors are started with."""

from __future__ import annotations

import os

from actors.placement import nodes_for
from actors.rollout import thread_binding
from dvpo_ray.config.sections import ClusterSection, EngineSection, RolloutSection


def test_only_a_lone_engine_with_all_cores_is_bound_to_them() -> None:
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    assert thread_binding(RolloutSection()) == cores
    assert thread_binding(RolloutSection(cpu_threads=1)) == "nobind"
    assert thread_binding(RolloutSection(actors=2)) == "nobind"
    assert thread_binding(RolloutSection(engine=EngineSection(tensor_parallel=2))) == "nobind"


def test_actors_are_kept_on_nodes_of_their_role_only_when_the_recipe_names_the_label() -> None:
    assert nodes_for("scorer", ClusterSection()) == {}
    assert nodes_for("scorer", ClusterSection(role_label="dvpo-ray/role")) == {"label_selector": {"dvpo-ray/role": "scorer"}}
