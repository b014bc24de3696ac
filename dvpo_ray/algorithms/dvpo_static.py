"""`dvpo_static`: see `dvpo_ray.maths.advantages.dvpo_static` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import DvpoStatic
from dvpo_ray.maths import advantages


@register("dvpo_static")
def estimate(settings: DvpoStatic, signals: Signals) -> Tensor:
    """Advantages [B, T] from frozen values and KL rewards."""
    return advantages.dvpo_static(signals.q_bt, signals.k_bt, signals.mask_bt)
