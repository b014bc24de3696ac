"""`dvpo_released`: see `dvpo_ray.maths.advantages.dvpo_released` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import register
from dvpo_ray.config.algorithms import DvpoReleased
from dvpo_ray.maths import advantages


@register("dvpo_released")
def estimate(settings: DvpoReleased, q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Advantages [B, T] from frozen values and KL rewards."""
    return advantages.dvpo_released(q_bt, k_bt, mask_bt, settings.lam, settings.whiten_values)
