"""Regression targets of the value model, trained from labelled answers.

Legend: q_bt [B, T+1] current values (t = 0 at the last prompt token), z_b [B] label of each answer in [-1, 1] (+1 preferred,
-1 not, in a tie 0), mask_bt [B, T+1] active positions. The last active position is trained on the label itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def td_targets(q_bt: Tensor, z_b: Tensor, mask_bt: Tensor, lam: float) -> Tensor:
    """G_T = z;  G_t = lam * G_{t+1} + (1 - lam) * q_{t+1}, with q held fixed.  [B, T+1], 0 on padding.

    Source: TD(lambda) with gamma 1 and no intermediate reward. The target sees the *next* value, never its own.
    """
    if q_bt.shape != mask_bt.shape or z_b.shape != q_bt.shape[:1]:
        raise ValueError(
            f"expected q, mask [B, T+1] and z [B]; got {tuple(q_bt.shape)}, {tuple(mask_bt.shape)}, {tuple(z_b.shape)}"
        )
    q_bt = q_bt.detach()
    out = torch.zeros_like(q_bt)
    running = z_b.to(q_bt.dtype)
    next_active = torch.zeros_like(running, dtype=torch.bool)
    for t in range(q_bt.shape[1] - 1, -1, -1):
        if t + 1 < q_bt.shape[1]:
            bootstrapped = lam * running + (1 - lam) * q_bt[:, t + 1]
            running = torch.where(next_active, bootstrapped, running)
        active = mask_bt[:, t] > 0
        out[:, t] = torch.where(active, running, out[:, t])
        next_active = active
    return out


def mc_targets(z_b: Tensor, mask_bt: Tensor) -> Tensor:
    """G_t = z at every active position: ``td_targets`` at lambda 1.  [B, T+1]"""
    return z_b.to(mask_bt.dtype)[:, None] * mask_bt


def default_lambda(mean_answer_tokens: float) -> float:
    """Lambda by answer length: 0.95 up to 60 tokens, else 1.0.

    With a zero-initialised head the first sweep's target at the first of T tokens is lam^(T-1) * z; at 0.95 that is 0.05
    for T = 60 and vanishes beyond, so early tokens of long answers would be trained towards 0.
    """
    return 0.95 if mean_answer_tokens <= 60 else 1.0
