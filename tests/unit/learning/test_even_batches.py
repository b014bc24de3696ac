"""Micro-batches are as few as the budget allows, and even."""

from __future__ import annotations

from dvpo_ray.learning.batching import micro_batches


def test_groups_are_evened_out_without_adding_one() -> None:
    groups = micro_batches([10] * 21, token_budget=140)
    assert sorted(len(group) for group in groups) == [10, 11], "filled to the brim it would be 14 and 7"


def test_a_single_group_stays_one() -> None:
    assert micro_batches([3, 9, 4], token_budget=27) == [[1, 2, 0]]
    assert micro_batches([], token_budget=10) == []
