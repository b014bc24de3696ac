"""`rloo`: see `dvpo_ray.maths.advantages.leave_one_out` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import Rloo
from dvpo_ray.maths import advantages


class RlooAlgorithm(PolicyGradient[Rloo]):
    """Rewards of whole answers, compared among the answers of a group."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T]."""
        rewards = advantages.sequence_rewards(signals.q_bt, signals.k_bt, signals.mask_bt, self.settings.score)
        return advantages.leave_one_out(rewards, signals.mask_bt, signals.group_b)
