"""Checks for the tests of plug-ins: each raises an AssertionError that says what is wrong.

They take a part's settings, build the part as a run does, and hold it to what driver, checkpoints and other processes rely on.
None needs Ray, engines or a model.
"""

from dvpo_ray.environments.conformance import check_environment
from dvpo_ray.testing.algorithms import check_algorithm
from dvpo_ray.testing.plans import check_plan, plan_context
from dvpo_ray.testing.refreshes import check_refresh
from dvpo_ray.testing.rewards import check_reward, reward_rows
from dvpo_ray.testing.settings import check_settings
from dvpo_ray.testing.trainers import check_trainer, trainer_context

__all__ = [
    "check_algorithm",
    "check_environment",
    "check_plan",
    "check_refresh",
    "check_reward",
    "check_settings",
    "check_trainer",
    "plan_context",
    "reward_rows",
    "trainer_context",
]
