"""What replies to the policy between its turns."""

from dvpo_ray.environments.base import Environment, EnvironmentRow, Turn, check_prompts, make_environment

__all__ = ["Environment", "EnvironmentRow", "Turn", "check_prompts", "make_environment"]
