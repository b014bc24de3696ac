"""Rollout plans: resets to within good answers, what plans are told when, and rows that are asked for beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.data import EncodedDemonstration
from dvpo_ray.errors import CheckpointError, ConfigError, DataError
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.rollouts.base import PlanContext, StatelessPlan, make_plan
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.types import Ragged, RolloutRequest, RowId, RowOutcome, ScoredBatch
from tests.support.fakes import numbered, scored_batch


def policy_of(**policy: Any) -> PolicyTraining:
    tree = {"value_model": "g", "data": {"source": "x"}, "rollout": {"prompts_per_step": 4, "answers_per_prompt": 2}}
    return build(PolicyRecipe, {"policy": tree | policy}).policy


def resets(fraction: float, answers: dict[str, tuple[int, ...]], seed: int = 0) -> Any:
    policy = policy_of(plan={"type": "resets", "data": {"source": "good"}, "fraction": fraction})
    rows = [EncodedDemonstration(key, key, (1,), key, answer) for key, answer in answers.items()]
    return make_plan(PlanContext(numbered(8), policy, seed, lambda section: rows))


def test_answers_begin_within_good_ones() -> None:
    """Where there is a good answer: all answers of a visit at the same place, never with all of it, and as often as asked."""
    good = {"p1": tuple(range(10, 20)), "p3": (5, 6), "p5": (7,)}
    plan = resets(0.5, good)
    requests = [request for step in range(200) for request in plan.requests(step)]
    by_visit: dict[int, set[tuple[int, ...]]] = {}
    for request in requests:
        by_visit.setdefault(request.group_id, set()).add(request.forced_ids)
        answer = good.get(request.row.prompt, ())
        assert request.forced_ids == answer[: len(request.forced_ids)]
        assert len(request.forced_ids) < max(1, len(answer))
    assert all(len(prefixes) == 1 for prefixes in by_visit.values())
    seen = [request for request in requests if request.row.prompt == "p1"]
    assert 0.4 < np.mean([bool(request.forced_ids) for request in seen]) < 0.6
    assert {len(request.forced_ids) for request in seen} == set(range(10))
    assert not any(request.forced_ids for request in requests if request.row.prompt in ("p0", "p5"))
    assert [plan.requests(7), resets(0.5, good).requests(7)] == [resets(0.5, good).requests(7)] * 2
    assert all(request.forced_ids for request in resets(1.0, good).requests(0) if request.row.prompt in ("p1", "p3"))


def test_resets_need_good_answers_to_the_prompts() -> None:
    with pytest.raises(DataError, match=r"plan\.data 'good' has no answer of two tokens or more to any of the 8 prompts"):
        resets(0.5, {"elsewhere": (1, 2, 3), "p1": (1,)})
    with pytest.raises(ConfigError, match=r"plan\.type = 'resets' needs room after a prefix"):
        policy_of(plan={"type": "resets", "data": {"source": "x"}}, rollout={"max_new_tokens": 1})


def test_what_was_given_carries_no_loss() -> None:
    """Of a row whose first two tokens were given, values, log-probs and positions are those of the others."""
    whole = scored_batch([5, 3])
    mask = Ragged.of([[False, False, True, True, True], [True] * 3], np.bool_)
    scored = replace(whole, action_mask=mask, channels={"x": Ragged.of([[1, 2, 4, 8, 16], [7]], np.float32)})
    actions = scored.actions
    assert actions.lengths.tolist() == [3, 3] and scored.tokens == 6
    assert np.array_equal(actions.log_probs.rows()[0], whole.log_probs.rows()[0][2:])
    assert np.array_equal(actions.values.rows()[0], whole.values.rows()[0][2:])
    assert [row.tolist() for row in actions.rewards["x"].rows()] == [[7, 8, 16], [7]], "what comes before joins the first"
    prompts, responses, masks = scored.sequences([0, 1])
    batch = pad_sequences(prompts, responses, masks=masks)
    expected = pad_sequences([np.append(prompts[0], responses[0][:2]), prompts[1]], [responses[0][2:], responses[1]])
    for name in ("input_ids", "before_response", "with_prompt_end", "targets"):
        assert getattr(batch, name).tolist() == getattr(expected, name).tolist()
    assert batch.response_lengths.tolist() == [3, 3]


def test_a_tools_tokens_are_left_out_in_the_middle() -> None:
    """What an environment says stands between two turns: the value before the second turn is that after it."""
    whole = scored_batch([5])
    mask = Ragged.of([[True, True, False, False, True]], np.bool_)
    actions = replace(whole, action_mask=mask, channels={"x": Ragged.of([[1, 2, 4, 8, 16]], np.float32)}).actions
    assert actions.log_probs.flat.tolist() == whole.log_probs.flat[[0, 1, 4]].tolist()
    assert actions.values.flat.tolist() == whole.values.flat[[0, 1, 4, 5]].tolist()
    assert actions.rewards["x"].flat.tolist() == [1, 14, 16], "what came in between is owed to the token before"


class Remembering(StatelessPlan):
    """Keeps what it is told."""

    observes = True

    def __init__(self) -> None:
        self.told: list[int] = []

    def requests(self, step: int) -> list[RolloutRequest]:
        return [RolloutRequest(RowId(step, step, str(self.told), 0), (1,), 0)]

    def observe(self, step: int, rows: Sequence[RowOutcome]) -> None:
        self.told.append(step)

    def state(self) -> dict[str, Any]:
        return {"told": list(self.told)}

    def restore(self, state: dict[str, Any]) -> None:
        self.told = list(state["told"])


@pytest.mark.parametrize("lead", [0, 1, 3])
def test_a_plan_is_told_as_much_as_its_step_may_know(lead: int) -> None:
    plan = ObservedPlan(Remembering(), lead)
    asked = {step: plan.requests(step)[0].row.prompt for step in range(lead + 1)}
    for step in range(6):
        plan.observe(step, [RowOutcome(RowId(step, step, "p", 0), 0, {"x": None}, 0.5, 3, "stop")])
        state = plan.state(step + 1)
        asked[step + lead + 1] = plan.requests(step + lead + 1)[0].row.prompt
        again = ObservedPlan(Remembering(), lead)
        again.restore(state, step + 1)
        found = [again.requests(ahead)[0].row.prompt for ahead in range(step + 1, step + lead + 2)]
        assert found == [asked[ahead] for ahead in range(step + 1, step + lead + 2)]
    assert asked == {step: str(list(range(max(0, step - lead)))) for step in range(lead + 7)}
    plan.restart()
    assert plan.requests(0)[0].row.prompt == "[]"


def test_a_damaged_state_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint of step 3: state\.plan is damaged"):
        ObservedPlan(Remembering(), 0).restore({"plan": {}, "seen": "x", "outcomes": {}}, 3)


def test_batches_with_other_channels_join_and_other_scorers_do_not() -> None:
    one, other = scored_batch([2]), replace(scored_batch([3], prefix="s"), channels={"x": Ragged.of([[1.0]], np.float32)})
    joined = ScoredBatch.concat([one, other])
    assert [row.tolist() for row in joined.channels["x"].rows()] == [[], [1.0]]
    with pytest.raises(ValueError, match=r"scored by value models \[0, 1\]"):
        ScoredBatch.concat([one, replace(other, scorer_version=1)])


@pytest.mark.parametrize(
    "row", [RowId(3, 17, "p5", 0), RowId(0, 4, "a/b:c/9\n", 1, "eval"), RowId(12, 0, "", 3), RowId(0, 0, "x/1", 0, "judge")]
)
def test_row_ids_are_read_again(row: RowId) -> None:
    assert RowId.parse(str(row)) == row


@pytest.mark.parametrize("text", ["", "x", "3/17:p5", "-1/2:p/0", "3/x:p/0", "Eval/3:p/0"])
def test_other_texts_are_no_row_ids(text: str) -> None:
    with pytest.raises(ValueError, match="is no row id"):
        RowId.parse(text)
