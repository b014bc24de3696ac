"""What actors are started with."""

from __future__ import annotations

import os

from actors.rollout import thread_binding
from dvpo_ray.config.sections import EngineSection, RolloutSection


def test_only_a_lone_engine_with_all_cores_is_bound_to_them() -> None:
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0)))
    assert thread_binding(RolloutSection()) == cores
    assert thread_binding(RolloutSection(cpu_threads=1)) == "nobind"
    assert thread_binding(RolloutSection(actors=2)) == "nobind"
    assert thread_binding(RolloutSection(engine=EngineSection(tensor_parallel=2))) == "nobind"
