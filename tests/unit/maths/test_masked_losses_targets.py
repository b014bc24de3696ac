"""Whitening, losses, targets, KL control and intervals against values worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dvpo_ray.algorithms import LossTerms, make_algorithm
from dvpo_ray.config.algorithms import P3o
from dvpo_ray.maths.kl_control import next_coefficient
from dvpo_ray.maths.losses import (
    K3_LIMIT,
    bradley_terry_loss,
    clipped_policy_loss,
    dpo_loss,
    importance_weights,
    ipo_loss,
    kl_k3,
    kl_k3_loss,
    kl_rewards,
    value_loss,
)
from dvpo_ray.maths.masked import moments, whiten
from dvpo_ray.maths.statistics import aggregate_values, bootstrap_ci95, mean_ci95, share_ci95, win_indicators, win_rate
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


@pytest.mark.parametrize("mode", ["full", "scale"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1000.1, 1e-12])
def test_whitening_of_a_batch_without_spread_gives_0(mode: Any, value: float) -> None:
    """Also where rounding makes a spread: float32 has steps of 6e-8 of a number's size, far below 1e-6 of the mean."""
    x, mask = torch.full((3, 4), value), torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    assert torch.equal(whiten(x, mask, moments(x, mask), mode), torch.zeros(3, 4))
    x[0, 0] = torch.nextafter(x[0, 0], torch.tensor(torch.inf))
    assert torch.equal(whiten(x, mask, moments(x, mask), mode), torch.zeros(3, 4))


def test_a_small_spread_is_whitened_all_the_same() -> None:
    # 1 and 1 + 2^-10: mean 1 + 2^-11, deviation 2^-11
    x, mask = torch.tensor([[1.0, 1.0 + 2**-10]]), torch.ones(1, 2)
    assert whiten(x, mask, moments(x, mask), "full")[0].tolist() == pytest.approx([-1, 1], abs=1e-6)


def test_numbers_that_are_not_finite_stay_so_when_whitened() -> None:
    x, mask = torch.tensor([[1.0, float("nan")]]), torch.ones(1, 2)
    assert whiten(x, mask, moments(x, mask), "full").isnan().all(), "an update of theirs is to be withheld"


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


def test_k3_as_a_loss_is_held_and_goes_on_pulling() -> None:
    """Up to d = 2.61, where e^d - 1 - d = 10, it is k3; at d = 4.61 it is 10 + 2 * 12.61, with the pull of d = 2.61.

    The pull on log pi is -(e^d - 1): 0.5 for d = -log 2, -12.61 from d = 2.61 on, 1 for d far below 0.
    """
    log_probs = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    reference = torch.tensor([-math.log(2), 1.0, K3_LIMIT, K3_LIMIT + 2, 500.0, -500.0])
    policy = log_probs.clone().requires_grad_(True)
    found = kl_k3_loss(policy, reference)
    slope = 12.610869
    expected = [0.5 - 1 + math.log(2), math.e - 2, 10.0, 10 + 2 * slope, 10 + slope * (500 - 2.610869), 499.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(found[:3], kl_k3(log_probs, reference)[:3])
    found.sum().backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.5, 1 - math.e, -slope, -slope, -slope, 1.0], rel=1e-5)


def test_log_ratios_are_held_before_they_are_exponentiated() -> None:
    """Log-ratios of 500 and -500 count as 20 and -20, e^20 = 4.851652e8, and have no gradient; one of 0.1 has its own."""
    log_probs = torch.tensor([500.0, -500.0, 0.1], requires_grad=True)
    total, clipped = clipped_policy_loss(log_probs, torch.zeros(3), torch.tensor([-1.0, 1.0, 1.0]), 0.2)
    assert float(total.detach()) == pytest.approx(4.851652e8 - 2.061154e-9 - math.exp(0.1), rel=1e-6)
    assert clipped.tolist() == [False, False, False]
    total.backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == pytest.approx([0, 0, -math.exp(0.1)], rel=1e-6)
    weights = importance_weights(torch.tensor([500.0, -500.0]), torch.zeros(2), 2.0)
    assert weights.tolist() == pytest.approx([2.0, 2.061154e-9], rel=1e-5)
    assert importance_weights(torch.tensor([500.0, -500.0]), torch.zeros(2), 2.0, mask=True).tolist() == [0, 0]
    # k3 as a measure: e^20 - 1 - 20, and e^-20 - 1 + 20
    assert kl_k3(torch.zeros(2), torch.tensor([500.0, -500.0])).tolist() == pytest.approx([4.851652e8 - 21, 19.0], rel=1e-6)


def test_p3o_holds_the_log_ratio_of_a_whole_answer() -> None:
    """Ten tokens of 30 nats are 300: e^300 is no float32. The second answer's ratio is 1."""
    log_probs = torch.cat([torch.full((10,), 30.0), torch.zeros(2)]).requires_grad_(True)
    advantages = torch.cat([torch.full((10,), -1.0), torch.ones(2)])
    total, _ = make_algorithm(P3o()).loss(LossTerms(log_probs, torch.zeros(12), advantages, torch.tensor([10, 2]), 0.2))
    assert float(total.detach()) == pytest.approx(4.851652e8 - 1, rel=1e-6)
    total.backward()
    assert log_probs.grad is not None and log_probs.grad.tolist() == [0.0] * 10 + [-1.0] * 2


def test_not_a_number_is_not_held() -> None:
    total, _ = clipped_policy_loss(torch.tensor([float("nan")]), torch.zeros(1), torch.ones(1), 0.2)
    assert math.isnan(float(total)), "an update of it is to be withheld"


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


def test_wilsons_interval_by_hand() -> None:
    """z^2 = 3.841459. 20 of 20: (1 + z^2 / 40 +- z^2 / 40) / (1 + z^2 / 20), so 1 / 1.192073 = 0.838875 to 1.

    8 of 10 (Wilson 1927; R's prop.test without correction gives the same): middle (0.8 + 0.192073) / 1.384146 = 0.716740,
    half 1.959964 / 1.384146 * sqrt(0.016 + 0.00960365) = 0.226577.
    """
    assert share_ci95([1.0] * 20) == pytest.approx((0.838875, 1.0), abs=1e-6)
    assert share_ci95([0.0] * 20) == pytest.approx((0.0, 0.161125), abs=1e-6)
    assert all(share_ci95([1.0] * n)[1] == 1.0 and share_ci95([0.0] * n)[0] == 0.0 for n in range(1, 200))
    assert share_ci95([1.0] * 8 + [0.0] * 2) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    alone = [str(i) for i in range(10)]
    assert share_ci95([1.0] * 8 + [0.0] * 2, alone) == pytest.approx((0.490162, 0.943318), abs=1e-5), "groups of one"


def test_a_share_of_groups_by_hand() -> None:
    """20 of 20 in ten pairs. With a pair of 1 and one of 0 added, p = 22 / 24; sums less n_g p are 1 / 6 (11 times) and -11 / 6:
    squares 11 / 36 + 121 / 36 = 11 / 3; variance 12 / 11 * 11 / 3 / 24^2 = 1 / 144; of independent ones (11 / 144) / 24: a ratio
    of 24 / 11, held at 2, where both of a pair are alike. So it is Wilson's of 10 of 10: 1 / 1.384146 = 0.722467.

    1, 0 in each of ten pairs: within the pairs everything differs, and the added ones alone lie apart: p = 1 / 2, squares 2 * 1,
    variance 12 / 11 * 2 / 24^2, of independent ones 1 / 96: 0.3636, held at 1. So it is Wilson's of 10 of 20: 0.5 -+ 0.2007.

    Five pairs of 1, five of 0: p = 1 / 2, squares 12, variance 12 / 11 * 12 / 576 = 1 / 44, ratio 96 / 44 = 2.18, held at 2:
    Wilson's of 5 of 10.
    """
    pairs = [str(i // 2) for i in range(20)]
    assert share_ci95([1.0] * 20, pairs) == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert share_ci95([0.0] * 20, pairs) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert share_ci95([1.0, 0.0] * 10, pairs) == pytest.approx(share_ci95([1.0, 0.0] * 10))
    assert share_ci95([1.0, 0.0] * 10) == pytest.approx((0.299298, 0.700702), abs=1e-6)
    assert share_ci95([1.0] * 10 + [0.0] * 10, pairs) == pytest.approx(share_ci95([1.0] * 5 + [0.0] * 5))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
def test_intervals_of_shares_hold_the_share_as_often_as_they_say(share: float) -> None:
    """2,000 draws of 60 pairs, both of a pair alike with a chance of one half: 95% within 4 standard errors of 0.5%, or more."""
    rng, names = np.random.default_rng(0), [str(i // 2) for i in range(120)]
    held = 0
    for _ in range(2000):
        first, second = (rng.random(60) < share for _ in range(2))
        second = np.where(rng.random(60) < 0.5, first, second)
        low, high = share_ci95(np.stack([first, second], axis=1).ravel().astype(float).tolist(), names)
        held += low <= share <= high
    assert held / 2000 > 0.93


def test_a_mean_of_zeros_and_ones_is_a_share() -> None:
    assert mean_ci95([1.0] * 20) == share_ci95([1.0] * 20)
    assert mean_ci95([0.5, 1.0] * 10) == bootstrap_ci95([0.5, 1.0] * 10)
    assert win_indicators([1.0, 2.0], [0.0, 2.0]) == [1.0, 0.5]
    with pytest.raises(ValueError, match="numbers from 0 to 1; got -0.5 to 1.0"):
        share_ci95([-0.5, 1.0])
    with pytest.raises(ValueError, match="no samples"):
        share_ci95([])


def test_aggregates() -> None:
    values = np.array([0.0, 1.0, 2.0])
    assert (aggregate_values(values, "mean"), aggregate_values(values, "last")) == (1.0, 2.0)
    assert aggregate_values(values, "p10") == pytest.approx(0.2)
