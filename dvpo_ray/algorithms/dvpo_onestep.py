"""`dvpo_onestep`: see `dvpo_ray.maths.advantages.dvpo_onestep` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import DvpoOnestep
from dvpo_ray.maths import advantages


class DvpoOnestepAlgorithm(PolicyGradient[DvpoOnestep]):
    """Advantages from frozen values and KL rewards."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T]."""
        return advantages.dvpo_onestep(signals.q_bt, signals.k_bt, signals.mask_bt)
