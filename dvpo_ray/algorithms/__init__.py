"""Advantage estimators, one file each, found by the `type` of their settings."""

from dvpo_ray.algorithms import dvpo_gae, dvpo_onestep, dvpo_released, dvpo_static
from dvpo_ray.algorithms.registry import advantages, estimator_names

__all__ = ["advantages", "dvpo_gae", "dvpo_onestep", "dvpo_released", "dvpo_static", "estimator_names"]
