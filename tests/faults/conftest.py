"""These tests run in one Ray, which is looked over when all are done."""

from __future__ import annotations

import pytest

from dvpo_ray.config.sections import ClusterSection


@pytest.fixture(scope="session", autouse=True)
def in_ray(ray: ClusterSection) -> None:
    """Every test here needs Ray."""
