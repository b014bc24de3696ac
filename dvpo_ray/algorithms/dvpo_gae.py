"""`dvpo_gae`: see `dvpo_ray.maths.advantages.dvpo_gae` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.registry import Signals, register
from dvpo_ray.config.algorithms import DvpoGae
from dvpo_ray.maths import advantages


@register("dvpo_gae")
def estimate(settings: DvpoGae, signals: Signals) -> Tensor:
    """Advantages [B, T] from frozen values and KL rewards."""
    return advantages.dvpo_gae(signals.q_bt, signals.k_bt, signals.mask_bt, settings.lam)
