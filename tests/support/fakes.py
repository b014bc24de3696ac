"""Fakes at the process border: stages that run in the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dvpo_ray.checkpoints.store import Checkpoint, CheckpointStore
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.driver import Driver
from dvpo_ray.loop.ledger import Ledger
from dvpo_ray.rollouts.base import PlanContext, make_plan
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.runs.folder import CHECKPOINTS
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Stages
from dvpo_ray.testing.fakes import FakeStages, FakeWeights, IdleStages, row, scored_batch, trained

__all__ = [
    "FakeStages",
    "FakeWeights",
    "IdleStages",
    "always_one",
    "answer_lengths",
    "drive",
    "early_letters",
    "numbered",
    "row",
    "scored_batch",
    "shuffled",
    "trained",
]


def numbered(count: int) -> list[EncodedPrompt]:
    """Prompts that only their number tells apart."""
    return [EncodedPrompt(f"p{i}", f"p{i}", (1, i), f"p{i}") for i in range(count)]


def shuffled(prompts: Sequence[EncodedPrompt], policy: PolicyTraining, seed: int = 0) -> ObservedPlan:
    """The default plan."""
    context = PlanContext(prompts, policy, seed, lambda section: [])
    return ObservedPlan(make_plan(context), policy.off_policy.max_staleness)


def drive(
    config: PolicyTraining,
    stages: Stages,
    plan: ObservedPlan,
    run: Run,
    checkpoint: Checkpoint | None = None,
    evaluate: Callable[[int], float | None] = lambda step: None,
) -> Ledger:
    """The real driver, checkpointing into the run's folder; returns its books."""
    checkpointer = Checkpointer(
        CheckpointStore(run.folder / CHECKPOINTS), stages.learner, run, config.checkpoint.every, config.steps
    )
    driver = Driver(config, stages, plan, run, checkpointer, evaluate)
    driver.train(checkpoint)
    return driver.ledger


def early_letters(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Gold for tests: share of letters a to f among the letters of an answer, less that of u to z."""
    return [(sum(c in "abcdef" for c in a) - sum(c in "uvwxyz" for c in a)) / max(1, len(a)) for a in answers]


def always_one(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """A reward for tests: the same for every answer."""
    return [1.0] * len(answers)


def answer_lengths(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """A reward for tests: letters of an answer."""
    return [float(len(answer)) for answer in answers]
