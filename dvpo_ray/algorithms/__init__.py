"""Advantage estimators, one file each, found by the `type` of their settings."""

from dvpo_ray.algorithms import dvpo_gae, dvpo_onestep, dvpo_released, dvpo_static, grpo, p3o, ppo, rloo
from dvpo_ray.algorithms.registry import LossTerms, Signals, advantages, estimator_names, policy_loss

__all__ = [
    "LossTerms",
    "Signals",
    "advantages",
    "dvpo_gae",
    "dvpo_onestep",
    "dvpo_released",
    "dvpo_static",
    "estimator_names",
    "grpo",
    "p3o",
    "policy_loss",
    "ppo",
    "rloo",
]
