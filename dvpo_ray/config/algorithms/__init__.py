"""Settings of the advantage estimators, one file each; `base` has what they share and their names."""

from dvpo_ray.config.algorithms.base import ALGORITHMS, AlgorithmSettings
from dvpo_ray.config.algorithms.dvpo import DvpoGae, DvpoOnestep, DvpoReleased, DvpoStatic
from dvpo_ray.config.algorithms.grpo import Grpo
from dvpo_ray.config.algorithms.p3o import P3o
from dvpo_ray.config.algorithms.ppo import CriticSection, Ppo
from dvpo_ray.config.algorithms.rloo import Rloo

__all__ = [
    "ALGORITHMS",
    "AlgorithmSettings",
    "CriticSection",
    "DvpoGae",
    "DvpoOnestep",
    "DvpoReleased",
    "DvpoStatic",
    "Grpo",
    "P3o",
    "Ppo",
    "Rloo",
]
