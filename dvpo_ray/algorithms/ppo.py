"""`ppo`: see `dvpo_ray.maths.advantages.ppo_gae` for the equation; rewards as PPO-max takes them (arXiv 2307.04964)."""

import numpy as np
from torch import Tensor

from dvpo_ray.algorithms.base import PolicyGradient, Signals
from dvpo_ray.config.algorithms import Ppo
from dvpo_ray.maths import advantages
from dvpo_ray.maths.running import RunningMoments

LEAST_STD = 1e-6


class PpoAlgorithm(PolicyGradient[Ppo]):
    """Advantages from an online critic's values and all rewards."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T]."""
        return advantages.ppo_gae(signals.q_bt, signals.k_bt, signals.mask_bt, self.settings.lam)

    def scaled(self, rewards_b: np.ndarray, moments: RunningMoments) -> tuple[np.ndarray, RunningMoments]:
        """Less the running mean, by the running deviation, clipped, as far as the settings ask for it."""
        if self.settings.normalise_rewards:
            moments = moments.with_batch(rewards_b)
            rewards_b = (rewards_b - moments.mean) / max(moments.std, LEAST_STD)
        limit = self.settings.clip_rewards
        if limit:
            rewards_b = rewards_b.clip(-limit, limit)
        return rewards_b.astype(np.float32), moments
