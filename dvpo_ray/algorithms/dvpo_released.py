"""`dvpo_released`, for replication alone: see `dvpo_ray.maths.advantages.dvpo_released` for the equation and what is wrong."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import DvpoReleased
from dvpo_ray.maths import advantages


@register("dvpo_released")
def estimate(settings: DvpoReleased, signals: Signals) -> Tensor:
    """Advantages [B, T] from frozen values and KL rewards."""
    return advantages.dvpo_released(signals.q_bt, signals.k_bt, signals.mask_bt, settings.lam, settings.whiten_values)
