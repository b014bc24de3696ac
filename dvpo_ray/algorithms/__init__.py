"""Advantage estimators, one file each, found by the `type` of their settings."""

from dvpo_ray.algorithms import dvpo_gae, dvpo_onestep, dvpo_released, dvpo_static, grpo, rloo
from dvpo_ray.algorithms.registry import Signals, advantages, estimator_names

__all__ = ["Signals", "advantages", "dvpo_gae", "dvpo_onestep", "dvpo_released", "dvpo_static", "estimator_names", "grpo", "rloo"]
