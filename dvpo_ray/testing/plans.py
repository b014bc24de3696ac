"""Checks of rollout plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dvpo_ray.config.plans import PlanSettings
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import AnswersSection
from dvpo_ray.data import EncodedDemonstration, EncodedPrompt
from dvpo_ray.rollouts.base import PlanContext, RolloutPlan, make_plan
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.testing.settings import assert_members, check_settings
from dvpo_ray.types import RolloutRequest, RowId, RowOutcome

STEPS = 6
MOST_ROUNDS = 100
Observing = Callable[[Sequence[RolloutRequest]], list[RowOutcome]]


def plan_context(settings: PlanSettings, seed: int = 0, **policy: Any) -> PlanContext:
    """Ten prompts, with a good answer to each, and a policy training of 4 prompts with 2 answers a step, one step ahead."""
    tree = {"data": {"source": "checked.jsonl"}, "off_policy": {"max_staleness": 1}, "plan": settings}
    tree |= {"rollout": {"prompts_per_step": 4, "answers_per_prompt": 2}} | policy
    prompts = [EncodedPrompt(f"p{i}", f"prompt {i}", (1, 2, 3 + i), f"p{i}") for i in range(10)]

    def demonstrations(section: AnswersSection) -> list[EncodedDemonstration]:
        return [EncodedDemonstration(**vars(prompt), answer_ids=(5, 6, 7, 8)) for prompt in prompts]

    return PlanContext(prompts, PolicyTraining.model_validate(tree), seed, demonstrations)


def check_plan(settings: PlanSettings, context: PlanContext | None = None) -> None:
    """A plan asks for the same rows whenever it is made anew, and goes on from its state as if it had never stopped.

    ``context`` stands in for that of ``plan_context``; its policy names these settings as its plan.

    Raises:
        AssertionError: it does not.
    """
    check_settings(settings)
    context = plan_context(settings) if context is None else context
    chosen = replace(context, policy=context.policy.model_copy(update={"plan": settings}))
    plan = make_plan(chosen)
    assert_members(plan, RolloutPlan)
    whole = _chain(ObservedPlan(plan, _lead(chosen)), chosen)
    _check_rows(type(plan).__qualname__, whole.asked)
    again = _chain(ObservedPlan(make_plan(chosen), _lead(chosen)), chosen)
    assert again.asked == whole.asked, (
        f"{type(plan).__qualname__} asks for other rows when it is made anew ({_first_difference(whole.asked, again.asked)}): "
        "all that it draws must follow from context.seed and the step"
    )
    for steps in range(1, STEPS):
        _check_resumed(chosen, whole, steps)


def _lead(context: PlanContext) -> int:
    return context.policy.off_policy.max_staleness


class _Chain:
    """What a plan asked for in each step, and its state after each."""

    def __init__(self) -> None:
        self.asked: dict[int, list[RolloutRequest]] = {}
        self.states: dict[int, str] = {}


def _chain(plan: ObservedPlan, context: PlanContext, first: int = 0) -> _Chain:
    """Steps as the driver does them: planned up to ``lead`` steps ahead, then trained and observed."""
    chain, begun = _Chain(), first
    for step in range(first, STEPS):
        while begun <= min(step + _lead(context), STEPS - 1):
            chain.asked[begun] = _asked(plan, begun)
            begun += 1
        # Outcomes come in no particular order.
        plan.observe(step, [_outcome(request) for request in chain.asked[step]][::-1])
        chain.states[step + 1] = _as_json(type(plan.plan).__qualname__, plan.state(step + 1))
    return chain


def _asked(plan: ObservedPlan, step: int) -> list[RolloutRequest]:
    """The rows of a step, those of refills included."""
    name = type(plan.plan).__qualname__
    requests = list(plan.requests(step))
    assert requests, f"{name}.requests({step}) asks for no rows"
    for round in range(MOST_ROUNDS):
        more = plan.refill(step, [_outcome(request) for request in requests], round)
        if not more:
            return requests
        requests += more
    raise AssertionError(f"{name}.refill asks for more rows of step {step} after {MOST_ROUNDS} rounds: let it end")


def _outcome(request: RolloutRequest) -> RowOutcome:
    """An outcome that follows from the row alone."""
    row = request.row
    draw = np.random.default_rng([row.step, row.slot, row.answer, len(request.prompt_ids), len(request.forced_ids)])
    score, value = draw.normal(size=2).tolist()
    return RowOutcome(
        row, request.group_id, {"checked": score}, value, int(draw.integers(1, 9)), "stop", bool(draw.random() < 0.1)
    )


def _as_json(name: str, state: dict[str, Any]) -> str:
    try:
        return json.dumps(state)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{name}.state() is no JSON, and could not be checkpointed: {error}") from error


def _check_rows(name: str, asked: dict[int, list[RolloutRequest]]) -> None:
    seen: dict[RowId, int] = {}
    for step, requests in asked.items():
        for request in requests:
            assert isinstance(request, RolloutRequest), f"{name}.requests({step}) gives {request!r:.80}, no RolloutRequest"
            row = request.row
            assert row not in seen, f"{name} asks for row {row} in step {seen[row]} and in step {step}: every row has its own id"
            assert row.step == step, f"{name}.requests({step}) names a row {row}: the step of its id is {row.step}"
            assert RowId.parse(str(row)) == row, f"{name}: row {row} cannot be read from its text: prompts are named by texts"
            seen[row] = step


def _check_resumed(context: PlanContext, whole: _Chain, steps: int) -> None:
    """A plan that is made anew after so many steps, and given its state, asks for what it would have asked for."""
    plan = ObservedPlan(make_plan(context), _lead(context))
    plan.restore(json.loads(whole.states[steps]), steps)
    rest = _chain(plan, context, steps)
    name = type(plan.plan).__qualname__
    expected = {step: requests for step, requests in whole.asked.items() if step >= steps}
    assert rest.asked == expected, (
        f"{name}, restored after step {steps}, asks for other rows than one that was never stopped "
        f"({_first_difference(expected, rest.asked)}): all that its requests depend on must be in state()"
    )
    assert rest.states[STEPS] == whole.states[STEPS], f"{name}, restored after step {steps}, ends in another state()"


def _first_difference(one: dict[int, list[RolloutRequest]], other: dict[int, list[RolloutRequest]]) -> str:
    for step, requests in one.items():
        if other.get(step) != requests:
            rows = [[str(request.row) for request in asked[:3]] for asked in (requests, other.get(step, []))]
            if rows[0] == rows[1]:
                return f"in step {step} rows of the same ids differ in prompt, seed or group"
            return f"first in step {step}: {', '.join(rows[0])}... became {', '.join(rows[1])}..."
    return "in the steps that are asked for"
