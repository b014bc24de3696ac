"""Actors that hang: an error that names them in time, and where they hang in the log."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray as ray_module

from actors.cluster.calls import get
from actors.cluster.session import actor_environment, keep_logs, start_actor
from dvpo_ray.errors import ActorTimeoutError
from tests.faults.waiter import Waiter

pytestmark = pytest.mark.integration
TIMEOUT_S = 2.0


def test_the_stacks_of_a_call_that_hangs_are_in_the_log(tmp_path: Path) -> None:
    actor = start_actor(Waiter, "waiter", actor_environment(1, TIMEOUT_S), 0).remote()
    get(actor.pid.remote(), 60, "waiter", "starting")
    with pytest.raises(ActorTimeoutError, match="waiter did not finish waiting in time"):
        get(actor.wait_for_what_never_comes.remote(), TIMEOUT_S, "waiter", "waiting")
    ray_module.kill(actor)
    keep_logs(tmp_path)
    assert any("in wait_for_what_never_comes" in log.read_text() for log in tmp_path.glob("worker-*.err"))
