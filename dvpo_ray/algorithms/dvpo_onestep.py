"""`dvpo_onestep`: see `dvpo_ray.maths.advantages.dvpo_onestep` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import register
from dvpo_ray.config.algorithms import DvpoOnestep
from dvpo_ray.maths import advantages


@register("dvpo_onestep")
def estimate(settings: DvpoOnestep, q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Advantages [B, T] from frozen values and KL rewards."""
    return advantages.dvpo_onestep(q_bt, k_bt, mask_bt)
