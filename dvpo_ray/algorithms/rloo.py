"""`rloo`: see `dvpo_ray.maths.advantages.leave_one_out` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import Rloo
from dvpo_ray.maths import advantages


@register("rloo")
def estimate(settings: Rloo, signals: Signals) -> Tensor:
    """Advantages [B, T] from the frozen scores of whole answers, compared among the answers of a prompt."""
    rewards = advantages.sequence_rewards(signals.q_bt, signals.k_bt, signals.mask_bt, settings.score)
    return advantages.leave_one_out(rewards, signals.mask_bt, signals.group_b)
