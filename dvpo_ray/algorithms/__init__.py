"""The algorithms, one file each, built from their settings."""

from dvpo_ray.algorithms.base import Algorithm, LossTerms, PolicyGradient, Signals, make_algorithm

__all__ = ["Algorithm", "LossTerms", "PolicyGradient", "Signals", "make_algorithm"]
