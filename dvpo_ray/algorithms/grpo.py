"""`grpo`: see `dvpo_ray.maths.advantages.group_relative` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import Grpo
from dvpo_ray.maths import advantages


@register("grpo")
def estimate(settings: Grpo, signals: Signals) -> Tensor:
    """Advantages [B, T] from the frozen scores of whole answers, compared among the answers of a prompt."""
    rewards = advantages.sequence_rewards(signals.q_bt, signals.k_bt, signals.mask_bt, settings.score)
    return advantages.group_relative(rewards, signals.mask_bt, signals.group_b, settings.normalise)
