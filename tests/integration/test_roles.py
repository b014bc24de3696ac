"""Actors go to nodes of their role, and wait for one where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration
# A Ray of its own, because labels are given to a node when it starts.
CODE = """
import ray
from actors.cluster.session import nodes_for, start_actor
from dvpo_ray.config.sections import ClusterSection

class Worker:
    def role(self):
        return ray.get_runtime_context().get_node_labels()["dvpo-ray/role"]

labels = {"dvpo-ray/role": "scorer"}
ray.init(num_cpus=4, labels=labels, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
cluster = ClusterSection(role_label="dvpo-ray/role")
scorer, learner = (start_actor(Worker, name, {}, 0.2, **nodes_for(name, cluster)).remote() for name in ("scorer", "learner"))
print("scorer on", ray.get(scorer.role.remote(), timeout=60))
waiting, _ = ray.wait([learner.role.remote()], timeout=5)
print("learner", "runs" if waiting else "waits")
ray.shutdown()
"""


def test_actors_go_to_nodes_of_their_role() -> None:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.stdout.splitlines() == ["scorer on scorer", "learner waits"], done.stdout + done.stderr
