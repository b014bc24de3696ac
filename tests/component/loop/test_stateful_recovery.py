"""Plans that learn from outcomes and value models that are replaced: what fails in between changes nothing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.plans import PlanSettings
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.driver import Driver
from dvpo_ray.rollouts.base import PlanContext, make_plan
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.rollouts.shuffled import ShuffledPlan
from dvpo_ray.runs.folder import CHECKPOINTS, run_folder
from dvpo_ray.runs.run import Run
from dvpo_ray.types import RolloutRequest, RowId, RowOutcome, ScorerVersion, StepResult
from tests.support.fakes import numbered
from tests.unit.loop.test_recovery import STEPS, ChainStages, DriverKilled, recipe, steps_and_chain


class LearningSettings(PlanSettings):
    """A plan whose requests follow from all that it has observed."""

    implementation = "tests.component.loop.test_stateful_recovery:LearningPlan"


class LearningPlan(ShuffledPlan):
    """Names rows after a digest of the outcomes that it was told of, in their order."""

    observes = True

    def __init__(self, settings: LearningSettings, context: PlanContext) -> None:
        super().__init__(settings, context)
        self._digest = ""

    def requests(self, step: int) -> list[RolloutRequest]:
        return [replace(one, row=replace(one.row, prompt=self._digest[:8])) for one in super().requests(step)]

    def observe(self, step: int, rows: Sequence[RowOutcome]) -> None:
        said = [(str(row.row), row.value) for row in rows]
        self._digest = hashlib.sha256(f"{self._digest}{step}{said}".encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        return {"digest": self._digest}

    def restore(self, state: dict[str, Any]) -> None:
        self._digest = state["digest"]


class AfterSomeSteps:
    """Brings a new value model after the third and the sixth step."""

    def after(self, step: int, rows: Sequence[RowOutcome]) -> ScorerVersion | None:
        numbers = {2: 1, 5: 2}
        return ScorerVersion(numbers[step], f"gvm-{step}", f"hash-{step}") if step in numbers else None


class VersionedStages(ChainStages):
    """Whose rows are told apart by who scored them as well."""

    def __init__(self, plan: Iterable[str] = ()) -> None:
        super().__init__(plan)
        self._scored_by: dict[RowId, int] = {}

    def score(self, answers: Iterable[RowId], version: ScorerVersion | None = None) -> Any:
        for batch in super().score(answers, version):
            self._scored_by |= dict.fromkeys(batch, version.number if version else 0)
            yield batch

    def value_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        return {"value": "sealed" if version is None else version.parameters_sha256}

    def step(self, step: int, beta: float, scored: Iterable[list[RowId]]) -> StepResult:
        batches = list(scored)
        told = {row: self._scored_by[row] for batch in batches for row in batch}
        self.chain = hashlib.sha256(f"{self.chain}{sorted(told.items())}".encode()).hexdigest()
        result = super().step(step, beta, batches)
        return replace(result, rows=tuple(replace(one, value=told[one.row] + step / 7) for one in result.rows))


def live(config: PolicyRecipe, stages: VersionedStages) -> None:
    """One life of a driver, from the newest checkpoint there is."""
    store = CheckpointStore(run_folder(config) / CHECKPOINTS)
    checkpoint = store.newest()
    run = Run(config, STEPS, in_place=checkpoint is not None)
    policy = config.policy
    plan = ObservedPlan(make_plan(PlanContext(numbered(6), policy, 0, lambda section: [])), policy.off_policy.max_staleness)
    checkpointer = Checkpointer(store, stages, run, policy.checkpoint.every, STEPS)
    try:
        Driver(policy, stages, plan, run, checkpointer, refresh=AfterSomeSteps()).train(checkpoint)  # type: ignore[arg-type]
    finally:
        run.close()


def recipe_of(folder: Path, every: int, name: str, lead: int) -> PolicyRecipe:
    plan = {"type": "tests.component.loop.test_stateful_recovery:LearningSettings"}
    return recipe(folder, every, name, off_policy={"max_staleness": lead}, plan=plan)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, list[tuple[int, float]]]]:
    """Chains of undisturbed runs, by how far they run ahead."""
    found = []
    for lead in range(3):
        config, stages = recipe_of(tmp_path_factory.mktemp("straight"), 0, "r", lead), VersionedStages()
        live(config, stages)
        found.append((stages.chain, steps_and_chain(config)))
    assert len({chain for chain, _ in found}) == 3, "what may be known, and so what is asked for, depends on the lead"
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), every=st.integers(1, 4), lead=st.integers(0, 2))
def test_neither_plan_nor_value_model_depends_on_failures(
    straight: list[tuple[str, list[tuple[int, float]]]], tmp_path: Path, seed: int, every: int, lead: int
) -> None:
    luck = random.Random(seed)
    config = recipe_of(tmp_path, every, f"r{seed}-{every}-{lead}", lead)
    for _life in range(200):
        stages = VersionedStages(luck.choices(["", "learner", "driver"], weights=[8, 1, 1], k=20))
        try:
            live(config, stages)
            break
        except DriverKilled:
            continue
    assert (stages.chain, steps_and_chain(config)) == straight[lead]
