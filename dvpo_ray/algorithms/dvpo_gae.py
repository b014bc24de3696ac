"""`dvpo_gae`: see `dvpo_ray.maths.advantages.dvpo_gae` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import register
from dvpo_ray.config.algorithms import DvpoGae
from dvpo_ray.maths import advantages


@register("dvpo_gae")
def estimate(settings: DvpoGae, q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Advantages [B, T] from frozen values and KL rewards."""
    return advantages.dvpo_gae(q_bt, k_bt, mask_bt, settings.lam)
