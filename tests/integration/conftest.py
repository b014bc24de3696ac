"""One Ray for all integration tests, stopped at the end; nothing may be left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.placement import ray_session
from dvpo_ray.config.sections import ClusterSection


@pytest.fixture(scope="session", autouse=True)
def ray() -> Iterator[ClusterSection]:
    """An embedded Ray; afterwards every process started by the tests must have ended."""
    cluster = ClusterSection(num_cpus=8)
    before = set(Path("/dev/shm").iterdir())
    with ray_session(cluster):
        yield cluster
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert not alive, f"processes left behind: {alive}"
    left = set(Path("/dev/shm").iterdir()) - before
    assert not left, f"shared memory left behind: {left}"
