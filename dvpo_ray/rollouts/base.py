"""What a rollout plan is, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dvpo_ray.config.environments import EnvironmentSettings
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import AnswersSection
from dvpo_ray.data import EncodedDemonstration, EncodedPrompt
from dvpo_ray.errors import DataError
from dvpo_ray.types import RolloutRequest, RowOutcome


class RolloutPlan(Protocol):
    """Which rows each step asks for.

    Everything follows from the seed, the step and what was observed, so that a run that is started again asks for the same rows.
    What a step's requests may depend on is given in time and no earlier: the outcomes of steps up to ``step - 1 - max_staleness``
    (``dvpo_ray.rollouts.observed`` sees to that).
    """

    @property
    def observes(self) -> bool:
        """Whether ``observe`` matters; else outcomes are not kept in checkpoints."""
        ...

    @property
    def refills(self) -> bool:
        """Whether ``refill`` may ask for more rows; the step's batches are then trained once all of them are scored."""
        ...

    def requests(self, step: int) -> list[RolloutRequest]:
        """The rows of a step; steps are asked for in order, each once."""
        ...

    def observe(self, step: int, rows: Sequence[RowOutcome]) -> None:
        """What became of a step's rows, in the order of their ids; steps come in order."""
        ...

    def refill(self, step: int, rows: Sequence[RowOutcome], round: int) -> list[RolloutRequest]:
        """More rows for a step whose rows so far are scored, in the order of their ids; none when it has enough. ``round`` counts
        from 0."""
        ...

    def state(self) -> dict[str, Any]:
        """What it has learnt, as JSON: part of every checkpoint."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            CheckpointError: it is none of this plan's.
        """
        ...


@dataclass(frozen=True)
class PlanContext:
    """What plans are made from.

    Attributes:
        prompts: to train on, at least one.
        policy: settings of the training.
        seed: of the run.
        demonstrations: reads prompts with good answers.
    """

    prompts: Sequence[EncodedPrompt]
    policy: PolicyTraining
    seed: int
    demonstrations: Callable[[AnswersSection], Sequence[EncodedDemonstration]]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise DataError("no prompts to train on")

    @property
    def environment(self) -> EnvironmentSettings | None:
        """What replies to the policy."""
        return self.policy.environment


class StatelessPlan:
    """What plans share that learn nothing from outcomes."""

    observes = False
    refills = False

    def observe(self, step: int, rows: Sequence[RowOutcome]) -> None:
        """Nothing depends on it."""

    def refill(self, step: int, rows: Sequence[RowOutcome], round: int) -> list[RolloutRequest]:
        """The rows that there are are enough."""
        return []

    def state(self) -> dict[str, Any]:
        """There is none."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is none."""


def make_plan(context: PlanContext) -> RolloutPlan:
    """The plan that a recipe chooses."""
    plan: RolloutPlan = context.policy.plan.build(context)
    return plan
