"""Micro-batches are as few as the budget allows, and even."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.learning.batching import micro_batches, packed_micro_batches


def test_groups_are_evened_out_without_adding_one() -> None:
    groups = micro_batches([10] * 21, token_budget=140)
    assert sorted(len(group) for group in groups) == [10, 11], "filled to the brim it would be 14 and 7"


def test_a_single_group_stays_one() -> None:
    assert micro_batches([3, 9, 4], token_budget=27) == [[1, 2, 0]]
    assert micro_batches([], token_budget=10) == []


@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(50, 300))
def test_packed_groups_hold_every_row_once_and_are_few(lengths: list[int], budget: int) -> None:
    groups = packed_micro_batches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in group) for group in groups]
    assert all(0 < size <= budget for size in sizes)
    # No two groups would fit into one more than once over: at least half of the budget is used.
    assert len(groups) <= 1 or sum(sizes) > budget * len(groups) / 2 - budget


def test_a_row_over_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 9 tokens does not fit the token budget of 8"):
        packed_micro_batches([3, 9], 8)
