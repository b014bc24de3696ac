"""`dvpo_onestep`: see `dvpo_ray.maths.advantages.dvpo_onestep` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import DvpoOnestep
from dvpo_ray.maths import advantages


@register("dvpo_onestep")
def estimate(settings: DvpoOnestep, signals: Signals) -> Tensor:
    """Advantages [B, T] from frozen values and KL rewards."""
    return advantages.dvpo_onestep(signals.q_bt, signals.k_bt, signals.mask_bt)
