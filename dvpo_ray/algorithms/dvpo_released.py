"""`dvpo_released`, for replication alone: see `dvpo_ray.maths.advantages.dvpo_released` for the equation and what is wrong."""

from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import DvpoReleased
from dvpo_ray.maths import advantages


class DvpoReleasedAlgorithm(PolicyGradient[DvpoReleased]):
    """Advantages from frozen values and KL rewards."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T]."""
        return advantages.dvpo_released(
            signals.q_bt, signals.k_bt, signals.mask_bt, self.settings.lam, self.settings.whiten_values
        )
