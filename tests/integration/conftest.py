"""Fixtures of real runs for these tests."""

from tests.real import pairs, policy_recipe, prompts, ray, value

__all__ = ["pairs", "policy_recipe", "prompts", "ray", "value"]
