"""`dvpo_gae`: see `dvpo_ray.maths.advantages.dvpo_gae` for the equation."""

from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import DvpoGae
from dvpo_ray.maths import advantages


class DvpoGaeAlgorithm(PolicyGradient[DvpoGae]):
    """Advantages from frozen values and KL rewards."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T]."""
        return advantages.dvpo_gae(signals.q_bt, signals.k_bt, signals.mask_bt, self.settings.lam)
