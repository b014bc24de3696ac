"""`dvpo_static`: see `dvpo_ray.maths.advantages.dvpo_static` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import DvpoStatic
from dvpo_ray.maths import advantages


class DvpoStaticAlgorithm(PolicyGradient[DvpoStatic]):
    """Advantages from frozen values and KL rewards."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T]."""
        return advantages.dvpo_static(signals.q_bt, signals.k_bt, signals.mask_bt)
