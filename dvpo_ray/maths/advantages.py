"""Advantages from a frozen value model (arXiv 2502.16944 and the algebra in docs/algorithms.md), and those of rivals that compare
whole answers of one prompt.

Legend: q_bt [B, T+1] frozen values, q_0 at the last prompt token, q_t at response token t = Q(s_{t-1}, y_t) = V(s_t);
k_bt [B, T] KL reward of each response token, -beta * (log mu - log pi_ref); mask_bt [B, T] active response tokens.
All answers start at column 0 and are padded on the right; padded columns never influence active ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# Below this spread of its rewards, relative to their size, a group says nothing but rounding.
SPREAD = 1e-6


def _check(q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor) -> None:
    expected = (mask_bt.shape[0], mask_bt.shape[1] + 1)
    if mask_bt.ndim != 2 or k_bt.shape != mask_bt.shape or tuple(q_bt.shape) != expected:
        raise ValueError(
            f"expected q [B, T+1], k [B, T], mask [B, T]; got {tuple(q_bt.shape)}, {tuple(k_bt.shape)}, {tuple(mask_bt.shape)}"
        )


def discounted_sum(delta_bt: Tensor, lam: float) -> Tensor:
    """S_t = delta_t + lam * S_{t+1}, over T columns from the right; ``delta`` must be 0 on padding. [B, T]"""
    out = torch.empty_like(delta_bt)
    running = torch.zeros_like(delta_bt[:, 0])
    for t in range(delta_bt.shape[1] - 1, -1, -1):
        running = delta_bt[:, t] + lam * running
        out[:, t] = running
    return out


def dvpo_gae(q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor, lam: float) -> Tensor:
    """A_t = sum_l lam^l delta_{t+l},  delta_t = k_t + q_t - q_{t-1}.  [B, T]

    The terminal reward is q_T itself and the value after the end is 0, so the weights on the values following a token
    add up to 1 at every token, the last included.
    """
    _check(q_bt, k_bt, mask_bt)
    return discounted_sum((k_bt + q_bt[:, 1:] - q_bt[:, :-1]) * mask_bt, lam)


def dvpo_onestep(q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """A_t = k_t + q_t - q_{t-1}: Q minus V, which is ``dvpo_gae`` at lambda 0.  [B, T]"""
    _check(q_bt, k_bt, mask_bt)
    return (k_bt + q_bt[:, 1:] - q_bt[:, :-1]) * mask_bt


def dvpo_static(q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """A_t = q_t + sum_{l>=0} k_{t+l}: the paper's static advantage with KL as reward-to-go; needs batch centring.  [B, T]"""
    _check(q_bt, k_bt, mask_bt)
    return q_bt[:, 1:] * mask_bt + discounted_sum(k_bt * mask_bt, 1.0)


def dvpo_released(q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor, lam: float, whiten_values: bool) -> Tensor:
    """The recursion of the authors' code (microsoft/DKI_LLM, dvpo/), kept for replication.  [B, T]

    With V_t = q_{t-1}, the value before token t: delta_t = k_t + V_{t+1} - V_t, V after the last token = 0, lambda-sum.
    Without KL this equals A_t = -V_t + (1 - lam) * sum_{l=1..n} lam^(l-1) V_{t+l}: the last token gets no credit for
    the action at all. ``whiten_values`` normalises each answer's values first; the release does so over prompt and
    padding as well, which is not imitated.
    """
    _check(q_bt, k_bt, mask_bt)
    v_bt = q_bt[:, :-1] * mask_bt
    if whiten_values:
        count = mask_bt.sum(1, keepdim=True).clamp(min=1)
        mean = v_bt.sum(1, keepdim=True) / count
        var = (((v_bt - mean) * mask_bt) ** 2).sum(1, keepdim=True) / count
        v_bt = (v_bt - mean) * torch.rsqrt(var + 1e-8) * mask_bt
    return _gae(v_bt, k_bt, mask_bt, lam)


def ppo_gae(v_bt: Tensor, r_bt: Tensor, mask_bt: Tensor, lam: float) -> Tensor:
    """A_t = sum_l lam^l delta_{t+l},  delta_t = r_t + V(s_t) - V(s_{t-1}),  V(s_T) = 0.  [B, T]

    PPO's own: v_bt [B, T+1] are an online critic's values of the states, V(s_0) at the last prompt token, and r_bt holds the
    reward of the whole answer at its last token (Schulman et al. 2016, arXiv 1506.02438, eq. 16 with gamma 1). A_t + V(s_{t-1})
    is the lambda-return the critic is trained towards.
    """
    _check(v_bt, r_bt, mask_bt)
    return _gae(v_bt[:, :-1] * mask_bt, r_bt, mask_bt, lam)


def _gae(v_bt: Tensor, r_bt: Tensor, mask_bt: Tensor, lam: float) -> Tensor:
    """GAE with the values before each token [B, T], 0 on padding; the value after the last token is 0."""
    v_next = torch.cat([v_bt[:, 1:], torch.zeros_like(v_bt[:, :1])], dim=1)
    return discounted_sum((r_bt + v_next - v_bt) * mask_bt, lam)


def sequence_scores(q_bt: Tensor, mask_bt: Tensor, score: Literal["last", "mean", "none"]) -> Tensor:
    """The frozen score of the whole answer [B]: q_T, the mean of q_1..q_T, or 0."""
    q_bt = q_bt[:, 1:] * mask_bt
    lengths = mask_bt.sum(1)
    if score == "none":
        return torch.zeros_like(lengths)
    if score == "mean":
        return q_bt.sum(1) / lengths.clamp(min=1)
    return q_bt.gather(1, (lengths.long() - 1).clamp(min=0)[:, None]).squeeze(1)


def sequence_rewards(q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor, score: Literal["last", "mean", "none"]) -> Tensor:
    """R = ``sequence_scores`` + sum_t k_t, [B]."""
    _check(q_bt, k_bt, mask_bt)
    return sequence_scores(q_bt, mask_bt, score) + (k_bt * mask_bt).sum(1)


def _group_sums(reward_b: Tensor, group_b: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of rewards and number of answers of each answer's own group, float64 [B] each."""
    same_bb = (group_b[:, None] == group_b[None, :]).double()
    return same_bb @ reward_b.double(), same_bb.sum(1)


def group_relative(reward_b: Tensor, mask_bt: Tensor, group_b: Tensor, normalise: Literal["std", "none"]) -> Tensor:
    """A_t = (R - mean of the group) / std of the group, the same for all tokens of an answer.  [B, T]

    GRPO (arXiv 2402.03300, section 4.1.2); ``none`` leaves the division out (Dr. GRPO, arXiv 2503.20783). A group without spread
    gives 0.

    The standard deviation s is that of the group's n answers themselves, sqrt(sum of squares / n). verl and TRL divide by the
    estimate of a sample, S = sqrt(sum of squares / (n - 1)), plus an epsilon (1e-6 and 1e-4), so
    A = A_verl * sqrt(n / (n - 1)) * (1 + epsilon / S): 1.41 times verl's for pairs, 1.15 for n = 4, 1.07 for n = 8.
    """
    total_b, count_b = _group_sums(reward_b, group_b)
    centred_b = reward_b - total_b / count_b
    if normalise == "std":
        squares_b, _ = _group_sums(centred_b**2, group_b)
        std_b = (squares_b / count_b).sqrt()
        least_b = SPREAD * (total_b / count_b).abs().clamp(min=1)
        centred_b = torch.where(std_b > least_b, centred_b / std_b.clamp(min=SPREAD), torch.zeros_like(centred_b))
    return centred_b[:, None].to(mask_bt.dtype) * mask_bt


def pairwise_difference(reward_b: Tensor, mask_bt: Tensor, group_b: Tensor) -> Tensor:
    """A_t = R - R of the partner, the same for all tokens of an answer; partners are ``partners`` of ``group_b``.  [B, T]

    P3O (arXiv 2310.00212): what all answers of a prompt gain alike cancels. An answer without a partner gives 0.
    """
    other_b = partners(group_b)
    alone_b = other_b == torch.arange(len(other_b), device=other_b.device)
    difference_b = (reward_b - reward_b[other_b]).masked_fill(alone_b, 0.0)
    return difference_b[:, None].to(mask_bt.dtype) * mask_bt


def partners(group_b: Tensor) -> Tensor:
    """Index of each row's partner: the rows of a group are paired in their order; one left over is its own partner.  [B]"""
    partner_b = torch.arange(len(group_b), device=group_b.device)
    waiting: dict[int, int] = {}
    for row, group in enumerate(group_b.tolist()):
        if group in waiting:
            other = waiting.pop(group)
            partner_b[row], partner_b[other] = other, row
        else:
            waiting[group] = row
    return partner_b


def leave_one_out(reward_b: Tensor, mask_bt: Tensor, group_b: Tensor) -> Tensor:
    """A_t = R - mean reward of the other answers of the prompt, the same for all tokens of an answer.  [B, T]

    RLOO (arXiv 2402.14740, eq. 8). An answer without others gives 0.
    """
    total_b, count_b = _group_sums(reward_b, group_b)
    others_b = (total_b - reward_b) / (count_b - 1).clamp(min=1)
    advantage_b = torch.where(count_b > 1, reward_b - others_b, torch.zeros_like(others_b))
    return advantage_b[:, None].to(mask_bt.dtype) * mask_bt
