"""Losses of the policy and of the value model, as sums over active tokens or pairs so that they add up across micro-batches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dvpo_ray.maths.masked import check_same_shape

# Log-ratios are held within this before they are exponentiated, as in verl: e^20 is 5e8, and e^89 overflows float32. Nothing that
# an update could be learnt from lies beyond it, and the gradient is 0 there.
LOG_RATIO_LIMIT = 20.0
# Where k3 is 10, the most that verl lets a token cost: e^x - 1 - x = 10. The reference gives such a token 13.6 times the chance.
K3_LIMIT = 2.610869


def ratio_of(log_ratios: Tensor) -> Tensor:
    """exp(x) with x held within ``LOG_RATIO_LIMIT`` of 0, so that it is finite; beyond it the gradient is 0. Any shape."""
    return torch.exp(log_ratios.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))


def kl_rewards(log_probs: Tensor, ref_log_probs: Tensor, beta: float) -> Tensor:
    """k_t = -beta * (log mu(y_t) - log pi_ref(y_t)), the KL penalty as a token reward. Any shape, in nats times beta."""
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    return -beta * (log_probs - ref_log_probs)


def kl_k3(log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """Per-token estimate of KL(p || other) for tokens sampled from p: exp(d) - 1 - d with d = log other - log p.

    Non-negative and unbiased (Schulman, "Approximating KL divergence", 2020), with d held within ``LOG_RATIO_LIMIT``.
    """
    check_same_shape(log_probs=log_probs, other_log_probs=other_log_probs)
    d = (other_log_probs - log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(d) - d


def kl_k3_loss(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """k3 as a penalty to be minimised: ``kl_k3`` up to d = ``K3_LIMIT``, and its tangent beyond. Any shape.

    The pull on a token's log-prob is then at most e^K3_LIMIT - 1 = 12.6. Without a limit it is e^d - 1, and one token that the
    policy has nearly given up outweighs all others; with the value cut, as verl cuts it at 10, the pull is gone where the policy
    is furthest from its reference.
    """
    check_same_shape(log_probs=log_probs, ref_log_probs=ref_log_probs)
    d = ref_log_probs - log_probs
    held = d.clamp(max=K3_LIMIT)
    return torch.expm1(held) - held + math.expm1(K3_LIMIT) * (d - held)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective, negated and summed (Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    With ``weights`` it is the decoupled objective (Hilton et al. 2022, arXiv 2110.00641, eq. 4): the ratio is taken to the
    policy that training started from, the weight corrects from the one that sampled.

    Args:
        log_probs: of the current policy, with gradient [N].
        old_log_probs: of the policy before the update [N].
        advantages: [N].
        clip_range: epsilon.
        weights: a factor for each token's term, without gradient [N]; none is 1.

    Returns:
        The loss sum (scalar) and which tokens were clipped [N], bool.
    """
    check_same_shape(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    ratio = ratio_of(log_probs - old_log_probs)
    plain = ratio * advantages
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range) * advantages
    terms = torch.minimum(plain, clipped)
    return -(terms if weights is None else weights * terms).sum(), clipped < plain


def sequence_sums(x: Tensor, lengths: Tensor) -> Tensor:
    """Sum of each answer's tokens, from flat tokens [N] and answer lengths [B] that add up to N.  [B]"""
    rows = torch.repeat_interleave(torch.arange(len(lengths), device=x.device), lengths)
    return torch.zeros(len(lengths), dtype=x.dtype, device=x.device).index_add(0, rows, x)


def clipped_sequence_loss(log_ratios: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective with one ratio for a whole answer, negated and summed, and which answers were clipped [B].

    With the reward differences of pairs as advantages it is P3O's separate clipping V1 (arXiv 2310.00212, section 4).

    Args:
        log_ratios: log of the answer's probability less that before the update, with gradient [B].
        advantages: [B].
        clip_range: epsilon.
    """
    return clipped_policy_loss(log_ratios, torch.zeros_like(log_ratios), advantages, clip_range)


def clipped_value_loss(v_bt: Tensor, old_bt: Tensor, returns_bt: Tensor, mask_bt: Tensor, clip_range: float) -> Tensor:
    """0.5 * squared error summed over active positions, a scalar.

    With a ``clip_range`` above 0 the larger of the errors of the value and of the value held within ``clip_range`` of the one
    before the update (value clipping of PPO, arXiv 2307.04964).
    """
    check_same_shape(v=v_bt, old=old_bt, returns=returns_bt, mask=mask_bt)
    error = (v_bt - returns_bt) ** 2
    if clip_range:
        held = old_bt + (v_bt - old_bt).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (held - returns_bt) ** 2)
    return 0.5 * (error * mask_bt).sum()


def importance_weights(log_probs: Tensor, sampling_log_probs: Tensor, max_weight: float, mask: bool = False) -> Tensor:
    """pi(y) / mu(y), cut at ``max_weight``, or with ``mask`` 0 where it lies outside 1/max_weight..max_weight; no gradient [N].

    Cutting bounds the variance at the price of a bias (Espeholt et al. 2018, arXiv 1802.01561, the weight rho of eq. 1).
    """
    check_same_shape(log_probs=log_probs, sampling_log_probs=sampling_log_probs)
    ratio = ratio_of(log_probs.detach() - sampling_log_probs)
    if mask:
        return ratio * ((ratio <= max_weight) & (ratio >= 1 / max_weight))
    return ratio.clamp(max=max_weight)


def value_loss(q_bt: Tensor, targets_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """0.5 * sum over answers of the mean squared error over that answer's positions, a scalar.

    The mean is per answer, so long answers weigh as much as short ones.
    """
    check_same_shape(q=q_bt, targets=targets_bt, mask=mask_bt)
    squared = (q_bt - targets_bt) ** 2 * mask_bt
    return 0.5 * (squared.sum(1) / mask_bt.sum(1).clamp(min=1)).sum()


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected), summed over pairs [P] (Bradley and Terry 1952)."""
    check_same_shape(chosen=chosen_scores, rejected=rejected_scores)
    return -F.logsigmoid(chosen_scores - rejected_scores).sum()


def dpo_loss(margins: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """-(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h), summed over pairs, a scalar (Rafailov et al. 2023, arXiv 2305.18290,
    eq. 7; with s > 0 the conservative form of Mitchell, "A note on DPO with noisy preferences", 2023).

    Args:
        margins: h = log pi(chosen) / pi_ref(chosen) - log pi(rejected) / pi_ref(rejected), in nats, with gradient [P].
        beta: strength of the pull towards the reference.
        label_smoothing: s, the probability that a label is wrong.
    """
    right, wrong = F.logsigmoid(beta * margins), F.logsigmoid(-beta * margins)
    return -((1 - label_smoothing) * right + label_smoothing * wrong).sum()


def ipo_loss(margins: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2, summed over pairs, a scalar (Azar et al. 2023, arXiv 2310.12036, eq. 17); margins as in ``dpo_loss``.

    The margin is drawn to a finite value, so pairs that are always ranked right do not pull for ever.
    """
    return ((margins - 1 / (2 * beta)) ** 2).sum()
