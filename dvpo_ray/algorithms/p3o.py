"""`p3o`: pairs of answers, one probability ratio for a whole answer (arXiv 2310.00212)."""

import torch
from torch import Tensor

from dvpo_ray.algorithms.base import LossTerms, PolicyGradient, Signals
from dvpo_ray.config.algorithms import P3o
from dvpo_ray.maths import advantages
from dvpo_ray.maths.losses import clipped_sequence_loss, sequence_sums


class P3oAlgorithm(PolicyGradient[P3o]):
    """What an answer's reward is above its partner's, and the clipped ratio of whole answers."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T]: the difference of an answer's reward to its partner's."""
        rewards = advantages.sequence_rewards(signals.q_bt, signals.k_bt, signals.mask_bt, self.settings.score)
        return advantages.pairwise_difference(rewards, signals.mask_bt, signals.group_b)

    def loss(self, terms: LossTerms) -> tuple[Tensor, Tensor]:
        """Loss summed over answers, and which tokens were clipped [N].

        ``separate`` clips each answer's ratio (V1 of the paper), ``joint`` the ratio of a pair (V2), whose rows follow one
        another.
        """
        lengths = terms.lengths
        log_ratio_b = sequence_sums(terms.log_probs - terms.old_log_probs, lengths)
        if self.settings.length_normalised:
            log_ratio_b = log_ratio_b / lengths
        first = lengths.cumsum(0) - lengths
        advantage_b = terms.advantages[first]
        if self.settings.clip == "separate":
            total, clipped_b = clipped_sequence_loss(log_ratio_b, advantage_b, terms.clip_range)
        else:
            one, other = log_ratio_b[0::2], log_ratio_b[1::2]
            total, clipped_p = clipped_sequence_loss(one - other, advantage_b[0::2], terms.clip_range)
            clipped_b = clipped_p.repeat_interleave(2)
        return total, torch.repeat_interleave(clipped_b, lengths)
