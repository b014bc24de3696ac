"""A run on a Ray cluster of several nodes, from which nodes are taken: a program of its own, with a Ray of its own.

``python -m tests.faults.lost_nodes RECIPE.json``: all actors run on the only worker node. After step 2 another one joins and Ray
gives notice that the first will be taken away, which it is after step 3. After step 5 a third one joins and the second is killed
without notice. Prints what the run says as JSON lines.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.runs.run import Event
from jobs.train_policy import train_policy

CPUS = 6
NOTICE_S = 4.0
# Ray finds out within seconds that a node is dead.
HEARTBEATS = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 5}


class Taker:
    """A listener that takes worker nodes away; steps that come again, because the run goes back to a checkpoint, do nothing."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._node = cluster.add_node(num_cpus=CPUS)
        self._old = self._node
        self._deadline = 0.0
        self._plan = {2: self._give_notice, 3: self._take, 5: self._kill}

    def __call__(self, event: Event) -> None:
        print(json.dumps({"event": event.kind, "text": event.text, "step": event.step}), flush=True)
        if event.kind == "step" and event.step in self._plan:
            self._plan.pop(event.step)()

    def _give_notice(self) -> None:
        self._old, self._node = self._node, self._cluster.add_node(num_cpus=CPUS)
        self._deadline = time.time() + NOTICE_S
        client, deadline = GcsClient(address=self._cluster.address), int(1000 * self._deadline)
        accepted, why = client.drain_node(self._old.node_id, DRAIN_NODE_REASON_PREEMPTION, "test", deadline)
        assert accepted, why

    def _take(self) -> None:
        # What dies before its time counts as a fault.
        threading.Event().wait(max(0.0, self._deadline - time.time()))
        self._cluster.remove_node(self._old, allow_graceful=False)

    def _kill(self) -> None:
        self._old, self._node = self._node, self._cluster.add_node(num_cpus=CPUS)
        self._cluster.remove_node(self._old, allow_graceful=False)


def main() -> None:
    """Run."""
    tree = json.loads(Path(sys.argv[1]).read_text())
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEARTBEATS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        taker = Taker(cluster)
        tree["cluster"] = {"address": cluster.address}
        result = train_policy(build(PolicyRecipe, tree), taker)
        print(json.dumps({"event": "result", "text": "", "steps": result["steps"]}), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
