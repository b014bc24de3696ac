"""Random plans of what dies when: whatever fails, the same is trained."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.loop.test_recovery import STEPS, ChainStages, DriverKilled, recipe, run_once, steps_and_chain, straight

__all__ = ["straight"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), every=st.integers(0, 4), lead=st.integers(0, 2))
def test_what_is_trained_does_not_depend_on_failures(
    straight: tuple[str, list[tuple[int, float]]], tmp_path: Path, seed: int, every: int, lead: int
) -> None:
    luck = random.Random(seed)
    config = recipe(tmp_path, every, f"r{seed}-{every}-{lead}", off_policy={"max_staleness": lead})
    for _life in range(200):
        plan = luck.choices(["", "learner", "driver"], weights=[8, 1, 1], k=20)
        stages = ChainStages(plan)
        try:
            ledger = run_once(config, stages)
            break
        except DriverKilled:
            continue
    assert (stages.chain, steps_and_chain(config)) == straight
    assert ledger.check() == {
        "ledger/admitted": 4 * STEPS,
        "ledger/trained": 4 * STEPS,
        "ledger/dead_lettered": 0,
        "ledger/in_flight": 0,
    }
