"""The pretraining loss of PPO-ptx: which rows a step has, what they add to its gradient, and its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from actors.learner.policy import PolicyLearnerRank
from dvpo_ray.data import EncodedDemonstration
from dvpo_ray.errors import ConfigError, StaleRowsError
from dvpo_ray.learning.ptx import Demonstrations
from tests.support.ranks import SEED, policy, rank_of, train

GAMMA = 0.3
LIMITS = {"max_prompt_tokens": 16, "max_answer_tokens": 16}
STREAMED: dict[str, Any] = {
    "streaming": True,
    "advantage": {"whitening": "none"},
    "ppo": {"loss_normaliser": "limit"},
    "scorer": {"rows_per_call": 4},
}


def demonstrations(count: int) -> Demonstrations:
    rng = np.random.default_rng(1)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(rng.integers(2, 300, size).tolist())

    return Demonstrations.of([EncodedDemonstration(f"d{i}", "", ids(3 + i % 4), "", ids(2 + 3 * i % 7)) for i in range(count)])


def by_hand(rank: PolicyLearnerRank, drawn: Demonstrations) -> tuple[dict[str, Tensor], float]:
    """Gradient of GAMMA times the mean cross-entropy of answer tokens, row by row, and that mean."""
    model = rank.backend.model
    total = torch.zeros(())
    for prompt, answer in zip(drawn.prompt_ids.rows(), drawn.response_ids.rows(), strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, answer])).long()
        logits = model(ids[None]).logits[0, prompt.size - 1 : -1]
        total = total + F.cross_entropy(logits, ids[prompt.size :], reduction="sum")
    mean = total / drawn.response_ids.flat.size
    model.zero_grad(set_to_none=True)
    (GAMMA * mean).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return found, float(mean.detach())


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("changes", "ranks"),
    [
        ({}, 1),
        ({"learner": {"dtype": "float32", "token_budget": 40, "ranks": 3}}, 3),
        ({"ppo": {"inner_epochs": 2, "mini_batches": 2}}, 1),
        (STREAMED, 1),
        ({"lora": {"rank": 4}}, 1),
        ({"advantage": {"type": "p3o"}, "rollout": {"max_new_tokens": 16, "prompts_per_step": 3, "answers_per_prompt": 2}}, 1),
    ],
    ids=["plain", "three ranks", "several updates", "streamed", "adapters", "ratios of answers"],
)
def test_the_gradient_is_the_sum_of_both(tiny_model: Path, changes: dict[str, Any], ranks: int) -> None:
    rows = demonstrations(5)
    ptx = {"data": LIMITS | {"source": "x"}, "coefficient": GAMMA, "rows_per_step": 4}
    alone = [rank_of(tiny_model, policy(**changes), None, rank, ranks) for rank in range(ranks)]
    both = [rank_of(tiny_model, policy(ptx=ptx, **changes), rows, rank, ranks) for rank in range(ranks)]
    without, given = [train(rank, 7) for rank in alone], [train(rank, 7) for rank in both]
    assert not any("loss/ptx" in metrics for _, metrics in without)
    ppo = both[0].policy.ppo
    updates = ppo.inner_epochs * ppo.mini_batches
    for update in range(updates):
        expected, mean = by_hand(alone[0], rows.draw(4, SEED, 7 * updates + update))
        for name, gradient in expected.items():
            policy_alone, found = (sum(steps[update][name] for steps, _ in runs) for runs in (without, given))
            torch.testing.assert_close(found, policy_alone + gradient, atol=1e-6, rtol=1e-5)
    assert sum(metrics["loss/ptx"] for _, metrics in given) == pytest.approx(mean, abs=1e-5), "that of the last update"
    assert given[0][1]["loss/policy"] == pytest.approx(without[0][1]["loss/policy"], abs=1e-6)


@pytest.mark.usefixtures("one_process")
def test_an_update_is_withheld_when_the_pretraining_loss_is_not_finite(tiny_model: Path) -> None:
    rank = rank_of(tiny_model, policy(ptx={"data": LIMITS | {"source": "x"}}), demonstrations(5))
    rank.backend.discard = lambda: None  # type: ignore[method-assign]
    rank._run_ptx = lambda rows, update: {"loss/ptx": float("nan")}  # type: ignore[method-assign]
    steps, metrics = train(rank, 0)
    assert not steps and metrics["loss/skipped_updates"] == 1


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("changes", [{}, STREAMED], ids=["at once", "streamed"])
def test_a_step_without_usable_rows_leaves_no_gradient(tiny_model: Path, changes: dict[str, Any]) -> None:
    rank = rank_of(tiny_model, policy(ptx={"data": LIMITS | {"source": "x"}}, **changes), demonstrations(5))
    with pytest.raises(StaleRowsError, match="all 6 answers of step 7"):
        train(rank, 7, sampled=0)
    assert all(p.grad is None for p in rank.backend.model.parameters())


def test_steps_go_through_all_rows_and_draw_the_same_again() -> None:
    rows = demonstrations(10)
    every = [tuple(row) for row in rows.prompt_ids.rows()]
    assert len(set(every)) == 10

    def drawn(seed: int, update: int) -> list[tuple[int, ...]]:
        return [tuple(row) for row in rows.draw(4, seed, update).prompt_ids.rows()]

    passes = [row for update in range(5) for row in drawn(SEED, update)]
    assert sorted(passes[:10]) == sorted(passes[10:]) == sorted(every), "5 steps of 4 rows are two passes over 10"
    assert passes[:10] != passes[10:], "each in an order of its own"
    assert drawn(SEED, 3) == drawn(SEED, 3) and drawn(SEED, 3) != drawn(SEED + 1, 3)
    assert len(rows.draw(25, SEED, 0)) == 25, "more than there are: some come again"
    both = {tuple(p): tuple(a) for p, a in zip(rows.prompt_ids.rows(), rows.response_ids.rows(), strict=True)}
    some = rows.draw(4, SEED, 1)
    assert all(both[tuple(p)] == tuple(a) for p, a in zip(some.prompt_ids.rows(), some.response_ids.rows(), strict=True))


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(ConfigError, match=r"token_budget \(40\) is smaller .* ptx\.data \(512 prompt \+ 16 .* lower the limits"):
        policy(ptx={"data": {"source": "x", "max_answer_tokens": 16}})
    with pytest.raises(ConfigError, match=r"ptx\.rows_per_step \(1\) is smaller than learner\.ranks \(2\), .*: raise it"):
        policy(
            ptx={"data": LIMITS | {"source": "x"}, "rows_per_step": 1},
            learner={"ranks": 2, "token_budget": 40},
        )
    with pytest.raises(ConfigError, match=r"policy\.ptx\.coefficient: .*greater than 0"):
        policy(ptx={"data": LIMITS | {"source": "x"}, "coefficient": 0.0})
