"""`grpo`: see `dvpo_ray.maths.advantages.group_relative` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import Grpo
from dvpo_ray.maths import advantages


class GrpoAlgorithm(PolicyGradient[Grpo]):
    """Scores of whole answers, compared among the answers of a group."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T].

        KL is compared too, but joins undivided: where all scores are equal, division by what is left would turn rounding into
        advantages of full size.
        """
        mask_bt, group_b = signals.mask_bt, signals.group_b
        scores_b = advantages.sequence_scores(signals.q_bt, mask_bt, self.settings.score)
        scores_b = scores_b + signals.terminal_b + (signals.reward_bt * mask_bt).sum(1)
        kl_b = (signals.kl_bt * mask_bt).sum(1)
        scores_bt = advantages.group_relative(scores_b, mask_bt, group_b, self.settings.normalise)
        return scores_bt + advantages.group_relative(kl_b, mask_bt, group_b, "none")
