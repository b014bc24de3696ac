"""Types that cross process borders check themselves; the ledger balances and admits the same rows again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.loop.ledger import Ledger
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.types import EngineLeftovers, Ragged, RolloutRequest, StepResult, Trajectory
from tests.support.fakes import numbered, row, scored_batch, shuffled, trained


@given(rows=st.lists(st.lists(st.integers(-9, 9), max_size=5), min_size=1, max_size=8), data=st.data())
def test_ragged_round_trip_and_take(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(rows, np.int32)
    assert [row.tolist() for row in ragged.rows()] == rows
    index = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))
    assert [row.tolist() for row in ragged.take(index).rows()] == [rows[i] for i in index]
    assert [row.tolist() for row in Ragged.concat([ragged, ragged]).rows()] == rows + rows


def test_bad_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to 3, flat has"):
        Ragged(np.zeros(2), np.array([3]))
    with pytest.raises(ValueError, match="at least one token"):
        RolloutRequest(row("r"), (), 0)
    one = np.zeros(1)
    with pytest.raises(ValueError, match="T >= 1"):
        Trajectory(row("r"), one, np.zeros(0), np.zeros(0), np.zeros(0), "stop")
    good = scored_batch([3, 2])
    with pytest.raises(ValueError, match="do not fit"):
        replace(good, values=good.log_probs)


def plan_of(count: int, per_step: int, answers: int, seed: int) -> ObservedPlan:
    rollout = {"prompts_per_step": per_step, "answers_per_prompt": answers}
    recipe = build(PolicyRecipe, {"policy": {"value_model": "g", "data": {"source": "x"}, "rollout": rollout}})
    return shuffled(numbered(count), recipe.policy, seed)


@given(count=st.integers(1, 20), per_step=st.integers(1, 9), answers=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_prompt_once_per_epoch_and_reproducible(count: int, per_step: int, answers: int, seed: int) -> None:
    plan, again = (plan_of(count, per_step, answers, seed) for _ in range(2))
    steps = [plan.requests(step) for step in range(2 * count)]
    assert again.requests(3 % (2 * count)) == steps[3 % (2 * count)]
    rows = [request for step in steps for request in step]
    assert len({r.row for r in rows}) == len(rows)
    epoch = [r.prompt_ids for r in rows[::answers]][:count]
    assert sorted(epoch) == sorted(p.prompt_ids for p in numbered(count))
    assert all(len({r.group_id for r in rows if r.row.slot == slot}) == 1 for slot in {r.row.slot for r in rows})


def test_books_balance_and_no_row_trains_twice() -> None:
    ledger, ids = Ledger(), [row(name) for name in "abcde"]
    ledger.admit(ids)
    step = StepResult(0, 1, trained(ids[:2], dropped=ids[2:3]))
    ledger.settle(step, given_up=ids[3:4])
    assert ledger.check() == {"ledger/admitted": 5, "ledger/trained": 2, "ledger/dead_lettered": 2, "ledger/in_flight": 1}
    with pytest.raises(AssertionError, match="rows trained twice or never admitted: .*a"):
        ledger.settle(step)
    with pytest.raises(AssertionError, match="rows given up twice or never admitted: .*d"):
        ledger.settle(StepResult(1, 2, ()), given_up=ids[3:4])
    ledger.trained += 1
    with pytest.raises(AssertionError, match="does not balance"):
        ledger.check()


def test_traces_add_up() -> None:
    one = EngineLeftovers(((2, 0.5),), ("psm_b",), ("dvpo-zmq-b",))
    two = EngineLeftovers(((1, 0.5), (2, 0.5)), ("psm_a", "psm_b"), ("dvpo-zmq-a",))
    assert one | two == EngineLeftovers(((1, 0.5), (2, 0.5)), ("psm_a", "psm_b"), ("dvpo-zmq-a", "dvpo-zmq-b"))
