"""These tests run in one Ray, which is looked over when all are done, and share the processes of their actors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.cluster.hosting import hosted
from actors.rollout.pool import RolloutPool
from dvpo_ray.config.sections import ClusterSection
from tests.support.engines import MODEL, settings
from tests.support.hosts import Hosts


@pytest.fixture(scope="session", autouse=True)
def in_ray(ray: ClusterSection) -> None:
    """Every test here needs Ray."""


@pytest.fixture(autouse=True)
def in_hosts(request: pytest.FixtureRequest, hosts: Hosts) -> Iterator[None]:
    """Actors live in kept processes, but for tests of how actors and their processes start and end (``fresh``)."""
    if request.node.get_closest_marker("fresh"):
        yield
        return
    with hosted(hosts):
        yield


@pytest.fixture
def rollouts(ray: ClusterSection, tiny_model: Path, in_hosts: None) -> Iterator[RolloutPool]:
    """An engine on the tiny model."""
    pool = RolloutPool(str(tiny_model), MODEL, settings().rollout, ray, seed=0)
    try:
        pool.wait_ready()
        yield pool
    finally:
        pool.stop()
