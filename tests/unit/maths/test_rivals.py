"""The mathematics of the rivals: PPO with an online critic, and P3O."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dvpo_ray.algorithms import LossTerms, Signals, make_algorithm
from dvpo_ray.config.algorithms import Grpo, P3o, Ppo
from dvpo_ray.maths.advantages import partners, ppo_gae
from dvpo_ray.maths.losses import clipped_value_loss, sequence_sums
from dvpo_ray.maths.running import RunningMoments

numbers = st.floats(-100, 100, allow_nan=False, width=32)


@given(batches=st.lists(st.lists(numbers, max_size=9), min_size=1, max_size=6))
def test_running_moments_are_those_of_all_numbers(batches: list[list[float]]) -> None:
    found = RunningMoments()
    for batch in batches:
        found = found.with_batch(batch)
    whole = [number for batch in batches for number in batch]
    assert found.count == len(whole)
    if whole:
        assert found.mean == pytest.approx(np.mean(whole), abs=1e-6)
    assert found.std == pytest.approx(np.std(whole) if len(whole) > 1 else 0.0, abs=1e-5)


def test_ppo_gae_by_hand() -> None:
    values = torch.tensor([[0.5, 0.2, -0.1, 9.0], [0.3, 7.0, 7.0, 7.0]])
    rewards = torch.tensor([[0.0, -0.1, 1.0], [2.0, 0.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    found = ppo_gae(values, rewards, mask, 0.5)
    # The value after the last token (9.0, 7.0) has no part: deltas are 1 + 0.1, -0.1 - 0.1 - 0.2, 0.2 - 0.5, and 2 - 0.3.
    assert found[0].tolist() == pytest.approx([-0.3 + 0.5 * (-0.4 + 0.5 * 1.1), -0.4 + 0.5 * 1.1, 1.1])
    assert found[1].tolist() == pytest.approx([1.7, 0.0, 0.0])


@given(seed=st.integers(0, 99), lam=st.floats(0, 1))
def test_ppo_gae_plus_value_is_the_lambda_return(seed: int, lam: float) -> None:
    """G_t = r_t + (1 - lam) V_t + lam G_{t+1}, with G = r at the end."""
    rng = torch.Generator().manual_seed(seed)
    values, rewards = torch.randn(1, 6, generator=rng).double(), torch.randn(1, 5, generator=rng).double()
    found = (ppo_gae(values, rewards, torch.ones(1, 5).double(), lam) + values[:, :-1])[0]
    wanted = rewards[0, 4]
    for t in range(4, -1, -1):
        assert float(found[t]) == pytest.approx(float(wanted), abs=1e-9)
        wanted = rewards[0, t - 1] + (1 - lam) * values[0, t] + lam * wanted


def test_value_clipping_takes_the_larger_error() -> None:
    old, returns, mask = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 5.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    values = torch.tensor([[0.1, 0.9, 0.0]], requires_grad=True)
    total = clipped_value_loss(values, old, returns, mask, 0.2)
    # 0.1 moved less than 0.2: (0.9)^2. 0.9 is held at 0.2, whose error (0.8)^2 is larger and has no gradient.
    assert total.item() == pytest.approx(0.5 * (0.81 + 0.64))
    total.backward()
    assert values.grad is not None and values.grad.tolist()[0] == pytest.approx([-0.9, 0.0, 0.0])
    assert float(clipped_value_loss(values, old, returns, mask, 0.0)) == pytest.approx(0.5 * (0.81 + 0.01))


def test_rows_of_a_prompt_are_paired_in_order() -> None:
    assert partners(torch.tensor([0, 1, 0, 1, 1, 2])).tolist() == [2, 3, 0, 1, 4, 5]


def test_sequence_sums() -> None:
    assert sequence_sums(torch.arange(5.0), torch.tensor([2, 3])).tolist() == [1, 9]


def signals(rewards_b: list[float], groups: list[int]) -> Signals:
    """One token an answer, with its reward."""
    scores_b = torch.tensor(rewards_b, dtype=torch.float64)
    nothing_bt = torch.zeros_like(scores_b[:, None])
    mask_bt, group_b = torch.ones_like(nothing_bt), torch.tensor(groups)
    return Signals(torch.zeros(len(groups), 2).double(), nothing_bt, nothing_bt, scores_b, mask_bt, group_b)


def test_grpo_does_not_divide_kl_by_the_spread_of_scores() -> None:
    """Two tokens an answer: scores 1, 3 and 2, 2, with a KL reward at the first token; the group of equal scores keeps its KL."""
    scores_b = torch.tensor([1.0, 3.0, 2.0, 2.0])
    kl_b = torch.tensor([0.03, 0.01, -0.004, 0.002])
    kl_bt = torch.stack([kl_b, torch.zeros(4)], dim=1)
    given = Signals(torch.zeros(4, 3), kl_bt, torch.zeros(4, 2), scores_b, torch.ones(4, 2), torch.tensor([0, 0, 1, 1]))
    found = make_algorithm(Grpo(score="none")).advantages(given)
    assert torch.equal(found[:, 0], found[:, 1])
    assert found[:, 0].tolist() == pytest.approx([-1.0 + 0.01, 1.0 - 0.01, -0.003, 0.003], abs=1e-6)


def bandit_gradient(logits: Tensor, arms: Tensor, advantage: Tensor, settings: P3o) -> Tensor:
    """Gradient of P3O's loss at the first update, when the old policy is the current one."""
    theta = logits.clone().requires_grad_(True)
    log_probs = theta.log_softmax(0)[arms]
    lengths = torch.ones(len(arms), dtype=torch.int64)
    total, _ = make_algorithm(settings).loss(LossTerms(log_probs, log_probs.detach(), advantage, lengths, 0.2))
    (total / len(arms)).backward()
    assert theta.grad is not None
    return theta.grad


@pytest.mark.parametrize("clip", ["separate", "joint"])
def test_p3o_on_a_bandit_is_the_policy_gradient(clip: str) -> None:
    """Over 10^5 pairs the mean gradient is that of the expected reward within 2%."""
    logits, reward = torch.tensor([0.2, -0.4, 0.7]), torch.tensor([1.0, 3.0, -0.5])
    generator = torch.Generator().manual_seed(0)
    arms = torch.multinomial(logits.softmax(0), 200_000, replacement=True, generator=generator)
    one, other = reward[arms[0::2]], reward[arms[1::2]]
    advantage = torch.stack([one - other, other - one], dim=1).flatten()
    found = bandit_gradient(logits, arms, advantage, P3o(clip=clip))  # type: ignore[arg-type]
    chances = logits.softmax(0)
    exact = -chances * (reward - (chances * reward).sum())
    assert float((found - exact).norm() / exact.norm()) < 0.02
    small = make_algorithm(P3o(score="none")).advantages(signals([4.0, 1.0, 0.0, 2.5], [0, 0, 1, 1]))
    assert small[:, 0].tolist() == [3.0, -3.0, -2.5, 2.5]


@pytest.mark.parametrize("clip", ["separate", "joint"])
@settings(deadline=None)
@given(shift=st.lists(numbers, min_size=2, max_size=2))
def test_p3o_is_blind_to_what_all_answers_of_a_prompt_gain(clip: str, shift: list[float]) -> None:
    """Adding delta(x) to the rewards leaves P3O's update as it was; PPO's changes."""
    logits, arms = torch.tensor([0.1, 0.5, -0.3]).double(), torch.tensor([0, 2, 1, 2])
    rewards, groups = [1.0, 0.0, 2.0, -1.0], [0, 0, 1, 1]
    shifted = [reward + shift[group] for reward, group in zip(rewards, groups, strict=True)]
    settings = P3o(clip=clip, score="none")  # type: ignore[arg-type]
    updates = [
        bandit_gradient(logits, arms, make_algorithm(settings).advantages(signals(given, groups))[:, 0], settings)
        for given in (rewards, shifted)
    ]
    assert torch.allclose(*updates, atol=1e-6)
    if max(map(abs, shift)) > 1:
        ppo = [make_algorithm(Ppo()).advantages(signals(given, groups)) for given in (rewards, shifted)]
        assert float((ppo[0] - ppo[1]).abs().max()) > 1e-3


def test_clipping_ends_the_gradient_of_answers_that_moved_enough() -> None:
    lengths = torch.tensor([2, 2])
    old = torch.zeros(4)
    log_probs = torch.tensor([0.2, 0.2, 0.0, 0.0], requires_grad=True)
    terms = LossTerms(log_probs, old, torch.tensor([1.0, 1.0, -1.0, -1.0]), lengths, 0.2)
    total, clipped = make_algorithm(P3o(clip="separate")).loss(terms)
    total.backward()
    # exp(0.4) is over 1.2: the first answer's term is held there; the second's ratio is 1.
    assert total.item() == pytest.approx(-1.2 + 1.0)
    assert clipped.tolist() == [True, True, False, False]
    assert log_probs.grad is not None and log_probs.grad.tolist() == [0, 0, 1, 1]
    total, clipped = make_algorithm(P3o(clip="joint")).loss(terms)
    assert total.item() == pytest.approx(-1.2) and clipped.all()
    total, clipped = make_algorithm(P3o(clip="joint", length_normalised=True)).loss(terms)
    assert total.item() == pytest.approx(-1.2) and clipped.all(), "exp(0.2 - 0) is over 1.2 as well"
