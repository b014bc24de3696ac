"""Whitening, losses, targets, KL control and intervals against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dvpo_ray.maths.kl_control import next_coefficient
from dvpo_ray.maths.losses import (
    bradley_terry_loss,
    clipped_policy_loss,
    dpo_loss,
    importance_weights,
    ipo_loss,
    kl_k3,
    kl_rewards,
    value_loss,
)
from dvpo_ray.maths.masked import masked_mean, moments, whiten
from dvpo_ray.maths.statistics import aggregate_values, bootstrap_ci95, win_rate
from dvpo_ray.maths.targets import default_lambda, mc_targets, td_targets


def test_whitening_by_hand_ignores_padding() -> None:
    x = torch.tensor([[1.0, 3.0, 99.0], [5.0, -7.0, 4.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # active 1, 3, 5: mean 3, variance 8/3
    std = math.sqrt(8 / 3)
    found = whiten(x, mask, moments(x, mask), "full")
    assert torch.allclose(found, torch.tensor([[-2 / std, 0, 0], [2 / std, 0, 0]]), atol=1e-6)
    scaled = whiten(x, mask, moments(x, mask), "scale")
    assert torch.allclose(scaled, torch.tensor([[1 / std, 3 / std, 0], [5 / std, 0, 0]]), atol=1e-6)
    assert torch.equal(whiten(x, mask, moments(x, mask), "none"), x * mask)
    assert masked_mean(x, mask) == 3


def test_moments_add_up_over_parts() -> None:
    x, mask = torch.randn(6, 5), (torch.rand(6, 5) > 0.4).float()
    assert torch.allclose(moments(x, mask), moments(x[:2], mask[:2]) + moments(x[2:], mask[2:]))


def test_td_targets_by_hand() -> None:
    # T = 2, z = 1, q = .2 .4 .6, lam .5:  G2 = 1;  G1 = .5*1 + .5*q2 = .8;  G0 = .5*.8 + .5*q1 = .6
    q = torch.tensor([[0.2, 0.4, 0.6]])
    found = td_targets(q, torch.tensor([1.0]), torch.ones(1, 3), 0.5)
    assert torch.allclose(found, torch.tensor([[0.6, 0.8, 1.0]]))


def test_td_targets_under_padding() -> None:
    q = torch.tensor([[0.2, 0.4, 0.6, 7.0, 8.0]])
    mask = torch.tensor([[1.0, 1, 1, 0, 0]])
    found = td_targets(q, torch.tensor([1.0]), mask, 0.5)
    assert torch.allclose(found, torch.tensor([[0.6, 0.8, 1.0, 0, 0]]))


def test_first_sweep_of_a_zero_head_is_the_discounted_label() -> None:
    found = td_targets(torch.zeros(1, 4), torch.tensor([-1.0]), torch.ones(1, 4), 0.9)
    assert torch.allclose(found, -torch.tensor([[0.9**3, 0.9**2, 0.9, 1.0]]))


def test_monte_carlo_is_td_at_lambda_one() -> None:
    q, z, mask = torch.randn(3, 5), torch.tensor([1.0, -1.0, 1.0]), torch.tensor([[1.0] * 5, [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    assert torch.equal(td_targets(q, z, mask, 1.0), mc_targets(z, mask))


def test_default_lambda_by_length() -> None:
    assert (default_lambda(40), default_lambda(60), default_lambda(61)) == (0.95, 0.95, 1.0)


def test_clipped_loss_by_hand() -> None:
    log_probs = torch.log(torch.tensor([0.6, 0.6, 0.3]))
    old = torch.log(torch.tensor([0.4, 0.4, 0.4]))
    total, clipped = clipped_policy_loss(log_probs, old, torch.tensor([1.0, -1.0, -2.0]), 0.2)
    # ratios 1.5, 1.5, .75: min(1.5, 1.2) = 1.2;  min(-1.5, -1.2) = -1.5;  min(-1.5, -1.6) = -1.6
    assert float(total) == pytest.approx(-(1.2 - 1.5 - 1.6), abs=1e-6)
    assert clipped.tolist() == [True, False, True]


def test_weighted_clipped_loss_by_hand() -> None:
    log_probs = torch.log(torch.tensor([0.6, 0.6, 0.3]))
    old = torch.log(torch.tensor([0.4, 0.4, 0.4]))
    weights = torch.tensor([0.5, 1.0, 0.0])
    total, _ = clipped_policy_loss(log_probs, old, torch.tensor([1.0, -1.0, -2.0]), 0.2, weights)
    assert float(total) == pytest.approx(-(0.5 * 1.2 - 1.5), abs=1e-6)


def test_importance_weights_by_hand() -> None:
    trained = torch.log(torch.tensor([0.8, 0.3, 0.1, 0.4])).requires_grad_(True)
    sampled = torch.log(torch.tensor([0.2, 0.2, 0.4, 0.4]))
    # ratios 4, 1.5, .25, 1
    cut = importance_weights(trained, sampled, 2.0)
    assert cut.tolist() == pytest.approx([2, 1.5, 0.25, 1])
    assert importance_weights(trained, sampled, 2.0, mask=True).tolist() == pytest.approx([0, 1.5, 0, 1])
    assert not cut.requires_grad, "a weight is no path for the gradient"


def test_importance_weights_correct_the_mean_of_another_policy() -> None:
    """Uncut weights turn a mean under the sampling policy into one under the trained policy."""
    pi, mu, f = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0, -2.0, 5.0])
    weights = importance_weights(pi.log(), mu.log(), max_weight=100.0)
    assert float((mu * weights * f).sum()) == pytest.approx(float((pi * f).sum()))


def test_kl_estimates_by_hand() -> None:
    p, q = torch.log(torch.tensor([0.5])), torch.log(torch.tensor([0.25]))
    assert float(kl_rewards(p, q, 0.1)) == pytest.approx(-0.1 * math.log(2))
    assert float(kl_k3(p, q)) == pytest.approx(0.5 - 1 + math.log(2))


def test_k3_is_unbiased() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    exact = float((p * (p / q).log()).sum())
    assert float((p * kl_k3(p.log(), q.log())).sum()) == pytest.approx(exact, abs=1e-6)


def test_value_loss_weighs_answers_equally() -> None:
    q = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    # row 1: mean of 1 -> 1; row 2: 4.  0.5 * (1 + 4)
    assert float(value_loss(q, torch.zeros_like(q), mask)) == 2.5


def test_bradley_terry_by_hand() -> None:
    found = bradley_terry_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    assert float(found) == pytest.approx(-math.log(1 / (1 + math.exp(-1))) + math.log(2))


def test_dpo_loss_by_hand() -> None:
    # beta .5: margins 1, -2 become .5, -1;  -log sigmoid(x) = log(1 + e^-x)
    margins = torch.tensor([1.0, -2.0])
    right = math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(1))
    wrong = math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(-1))
    assert float(dpo_loss(margins, 0.5)) == pytest.approx(right, abs=1e-6)
    assert float(dpo_loss(margins, 0.5, label_smoothing=0.1)) == pytest.approx(0.9 * right + 0.1 * wrong, abs=1e-6)


def test_without_a_margin_dpo_costs_log_2_and_pulls_by_half_of_beta() -> None:
    margins = torch.zeros(3, requires_grad=True)
    total = dpo_loss(margins, 0.1)
    assert float(total.detach()) == pytest.approx(3 * math.log(2), abs=1e-6)
    total.backward()
    assert margins.grad is not None and margins.grad.tolist() == pytest.approx([-0.05] * 3)


def test_smoothed_labels_draw_the_margin_to_their_log_odds() -> None:
    """With s = .2 the loss is least where sigmoid(beta h) = .8, that is beta h = log 4."""
    margins = torch.tensor([math.log(4) / 0.5], requires_grad=True)
    dpo_loss(margins, 0.5, label_smoothing=0.2).backward()
    assert margins.grad is not None and float(margins.grad) == pytest.approx(0, abs=1e-6)


def test_ipo_loss_by_hand() -> None:
    # beta .25 draws margins to 2: (1 - 2)^2 + (-2 - 2)^2
    assert float(ipo_loss(torch.tensor([1.0, -2.0]), 0.25)) == 17
    assert float(ipo_loss(torch.zeros(2), 0.1)) == pytest.approx(2 * 25)


def test_kl_control_by_hand() -> None:
    # error is clipped to 0.2: 0.1 * (1 + 0.2 * 32 / 320) = 0.102
    assert next_coefficient(0.1, 60.0, 6.0, 320, 32) == pytest.approx(0.102)
    assert next_coefficient(0.1, 6.0, 6.0, 320, 32) == pytest.approx(0.1)
    assert next_coefficient(0.1, 0.0, 6.0, 320, 32) == pytest.approx(0.098)


def test_intervals_and_win_rate() -> None:
    low, high = bootstrap_ci95([0.0, 1.0] * 200)
    assert 0.44 < low < 0.5 < high < 0.56
    # samples of one prompt are copies: the interval must be as wide as that of the prompts alone
    grouped = bootstrap_ci95([0.0, 1.0] * 200, groups=["a", "b"] * 200)
    assert grouped == (0.0, 1.0)
    assert win_rate([1.0, 2.0, 3.0], [0.0, 2.0, 4.0]) == 0.5


def test_aggregates() -> None:
    values = np.array([0.0, 1.0, 2.0])
    assert (aggregate_values(values, "mean"), aggregate_values(values, "last")) == (1.0, 2.0)
    assert aggregate_values(values, "p10") == pytest.approx(0.2)
