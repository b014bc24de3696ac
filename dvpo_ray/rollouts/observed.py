"""A plan that is told of outcomes when it may know them, and is as it was when a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dvpo_ray.errors import CheckpointError
from dvpo_ray.rollouts.base import RolloutPlan
from dvpo_ray.types import RolloutRequest, RowOutcome

OUTCOMES = TypeAdapter(dict[int, list[RowOutcome]])


class ObservedPlan:
    """Gives a plan the outcomes of steps up to ``step - 1 - lead`` before it plans ``step``, however far training has gone.

    When ``step`` is planned differs between a run and one that was started again: the former plans ``lead`` steps ahead, the
    latter anew from a checkpoint. What the plan knows then does not.
    """

    def __init__(self, plan: RolloutPlan, lead: int) -> None:
        """``lead`` is ``off_policy.max_staleness``."""
        self.plan = plan
        self._lead = lead
        self._at_start = deepcopy(plan.state())
        self._outcomes: dict[int, list[RowOutcome]] = {}
        self._seen = 0
        # The plan's state, and the steps that it had seen, before each step that was planned and is not trained.
        self._before: dict[int, tuple[dict[str, Any], int]] = {}

    def requests(self, step: int) -> list[RolloutRequest]:
        """The rows of a step."""
        self._see(step)
        self._before[step] = deepcopy(self.plan.state()), self._seen
        return self.plan.requests(step)

    def refill(self, step: int, rows: Sequence[RowOutcome], round: int) -> list[RolloutRequest]:
        """More rows of a step, some of whose rows are there."""
        return self.plan.refill(step, sorted(rows, key=lambda outcome: outcome.row), round) if self.plan.refills else []

    def observe(self, step: int, rows: Sequence[RowOutcome]) -> None:
        """A step was trained."""
        self._before.pop(step, None)
        if self.plan.observes:
            self._outcomes[step] = sorted(rows, key=lambda outcome: outcome.row)

    def state(self, steps: int) -> dict[str, Any]:
        """As it was, or will be, before step ``steps`` is planned, with the outcomes that it will be told of later."""
        if steps not in self._before:
            self._see(steps)
        state, seen = self._before.get(steps) or (deepcopy(self.plan.state()), self._seen)
        later = {step: rows for step, rows in self._outcomes.items() if seen <= step < steps}
        return {"plan": state, "seen": seen, "outcomes": OUTCOMES.dump_python(later, mode="json")}

    def restore(self, state: dict[str, Any], steps: int) -> None:
        """Go on before step ``steps``.

        Raises:
            CheckpointError: the state is damaged, or another plan's.
        """
        try:
            self._outcomes = OUTCOMES.validate_python(state["outcomes"])
            self._seen = int(state["seen"])
            plan = dict(state["plan"])
        except (ValidationError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint of step {steps}: state.plan is damaged: {error!r}") from error
        self._before = {}
        self.plan.restore(plan)

    def restart(self) -> None:
        """Go on from the very beginning."""
        self._outcomes, self._before, self._seen = {}, {}, 0
        self.plan.restore(deepcopy(self._at_start))

    def _see(self, step: int) -> None:
        """Tell the plan what it may know when it plans a step."""
        while self._seen < step - self._lead and self._seen in self._outcomes:
            self.plan.observe(self._seen, self._outcomes[self._seen])
            self._seen += 1
        if not self.plan.observes:
            self._seen = max(0, step - self._lead)
        kept = min([self._seen, *(seen for _, seen in self._before.values())])
        self._outcomes = {at: rows for at, rows in self._outcomes.items() if at >= kept}
