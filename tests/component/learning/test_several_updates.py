"""Steps of several optimizer steps: what is said of those that were withheld, and how the gap to the engine is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.ranks import policy, rank_of, train

FOUR = {"inner_epochs": 2, "mini_batches": 2}

pytestmark = pytest.mark.usefixtures("one_process")


def test_an_update_that_was_withheld_is_counted_though_later_ones_were_taken(tiny_model: Path) -> None:
    rank = rank_of(tiny_model, policy(ppo=FOUR), None)
    take = rank.backend.apply
    norms: Iterator[float] = iter([1.0, float("nan"), 1.0, 1.0] + [1.0] * 4)
    rank.backend.apply = lambda: (take()[0] * next(norms), 1.0)  # type: ignore[method-assign]
    assert [train(rank, step)[1]["loss/skipped_updates"] for step in (0, 1)] == [1, 0]


@pytest.mark.parametrize("old", ["learner", "engine"])
def test_the_gap_to_the_engine_is_that_before_the_policy_moved(tiny_model: Path, old: str) -> None:
    still, moving = (rank_of(tiny_model, policy(ppo=FOUR | {"old_log_probs": old}), None) for _ in range(2))
    take = moving.backend.apply

    def move() -> tuple[float, float]:
        with torch.no_grad():
            for parameter in moving.backend.model.parameters():
                parameter.mul_(1.5)
        return take()

    moving.backend.apply = move  # type: ignore[method-assign]
    (_, before), (_, after) = train(still, 0), train(moving, 0)
    assert abs(after["kl/learner_per_token"] - before["kl/learner_per_token"]) > 0.1, "it moved"
    for name in ("gap/abs_log_prob", "gap/kl_k3"):
        assert after[name] == before[name] > 0
