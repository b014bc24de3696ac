"""`ppo`: see `dvpo_ray.maths.advantages.ppo_gae` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import Ppo
from dvpo_ray.maths import advantages


@register("ppo")
def estimate(settings: Ppo, signals: Signals) -> Tensor:
    """Advantages [B, T] from an online critic's values and rewards at the last token."""
    return advantages.ppo_gae(signals.q_bt, signals.k_bt, signals.mask_bt, settings.lam)
