"""Fixtures of real runs for these tests."""

from pathlib import Path

import pytest

from jobs.train_policy import train_policy
from tests.real import MakePolicyRecipe, pairs, policy_recipe, prompts, ray, value

__all__ = ["pairs", "policy_recipe", "prompts", "ray", "straight", "value"]


@pytest.fixture(scope="session")
def straight(policy_recipe: MakePolicyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which nothing fails."""
    folder = tmp_path_factory.mktemp("straight")
    train_policy(policy_recipe(folder, "straight", evaluation=None, commit={"every": 3}))
    return folder / "straight"
