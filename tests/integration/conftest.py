"""These tests run in one Ray, which is looked over when all are done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.rollout.pool import RolloutPool
from dvpo_ray.config.sections import ClusterSection
from tests.support.engines import MODEL, settings


@pytest.fixture(scope="session", autouse=True)
def in_ray(ray: ClusterSection) -> None:
    """Every test here needs Ray."""


@pytest.fixture(scope="module")
def rollouts(ray: ClusterSection, tiny_model: Path) -> Iterator[RolloutPool]:
    """An engine on the tiny model, for all tests of a file."""
    pool = RolloutPool(str(tiny_model), MODEL, settings().rollout, ray, seed=0)
    pool.wait_ready()
    yield pool
    pool.stop()
