"""One step of direct preference optimisation: scores of answers and the loss of their pairs.

The reference is the policy before its first step. Its scores are computed then and kept, so no second model is in memory.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.learning.batching import to_padded
from dvpo_ray.maths.losses import dpo_loss, ipo_loss


def answer_scores(log_probs: Tensor, lengths: np.ndarray, average: bool) -> Tensor:
    """Log-prob of each answer [B]: the sum, or the mean, over its tokens of flat ``log_probs`` [sum T_i]."""
    log_probs_bt, mask_bt = to_padded(log_probs, lengths)
    total = log_probs_bt.sum(1)
    return total / mask_bt.sum(1) if average else total


def loss(scores: Tensor, reference: Tensor, dpo: DpoTraining) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss summed over pairs, and sums for metrics (each a scalar tensor, to be divided by the number of pairs).

    Args:
        scores: of the policy, with gradient; rows alternate chosen, rejected [2 P].
        reference: of the reference, in the same order [2 P].
        dpo: settings.
    """
    log_ratios_p2 = (scores - reference).view(-1, 2)
    margins = log_ratios_p2[:, 0] - log_ratios_p2[:, 1]
    total = ipo_loss(margins, dpo.beta) if dpo.loss == "ipo" else dpo_loss(margins, dpo.beta, dpo.label_smoothing)
    settled = margins.detach()
    sums = {
        "loss/dpo": total.detach(),
        "dpo/margin": dpo.beta * settled.sum(),
        "dpo/accuracy": ((settled > 0).float() + 0.5 * (settled == 0).float()).sum(),
        "dpo/chosen": log_ratios_p2[:, 0].detach().sum(),
        "dpo/rejected": log_ratios_p2[:, 1].detach().sum(),
    }
    return total, sums
