"""The preStop hook of one node among several on a machine: `python -m tests.support.pod_hook RAYLET_PID WAIT_S [--stop]`.

In a pod there is one node, which `dvpo jobs drain` finds by itself.
"""

from __future__ import annotations

import json
import sys

import psutil

from actors.cluster.token import use_token


def main() -> None:
    """Drain and print how the jobs ended."""
    use_token()
    from actors.cluster.drain import Drain, LocalNode, RayNotices, connect

    node = LocalNode.of(psutil.Process(int(sys.argv[1])))
    drain = Drain(connect(node), RayNotices(node), float(sys.argv[2]))
    print(json.dumps(drain.head() if "--stop" in sys.argv else drain.worker(alone_s=60)))


if __name__ == "__main__":
    main()
