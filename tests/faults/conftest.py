"""These tests run in one Ray, which is looked over when all are done."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvpo_ray.config.sections import ClusterSection
from jobs.train_policy import train_policy
from tests.support.real import MakePolicyRecipe


@pytest.fixture(scope="session", autouse=True)
def in_ray(ray: ClusterSection) -> None:
    """Every test here needs Ray."""


@pytest.fixture(scope="session")
def straight(policy_recipe: MakePolicyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which nothing fails."""
    folder = tmp_path_factory.mktemp("straight")
    train_policy(policy_recipe(folder, "straight", evaluation=None, checkpoint={"every": 3}))
    return folder / "straight"
