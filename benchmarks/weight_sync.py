"""How long new weights take to reach an engine, and the memory it takes: the demo's learner and engine, nothing else running."""

from __future__ import annotations

import os
import statistics
import time

from actors.cluster.session import ray_session
from actors.learner.policy_gang import PolicyLearner
from actors.rollout.pool import RolloutPool
from benchmarks.common import demo_recipe, table, write_section
from dvpo_ray.config.sections import ClusterSection, ModelSection
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.runs.memory import MemoryMonitor

ROUNDS, WARM_UP = 10, 2
WAYS = (("shared_memory", 512), ("shared_memory", 64), ("object_store", 64), ("broadcast", 512), ("broadcast", 64))


def measure(backend: str, bucket_mib: int) -> list[str]:
    """One line of the table."""
    policy = demo_recipe().policy
    transfer = policy.transfer.model_copy(update={"backend": backend, "bucket_mib": bucket_mib})
    policy = policy.model_copy(update={"transfer": transfer})
    cluster, model, folder = ClusterSection(), ModelSection(attention="eager"), str(resolve_model("smollm2-135m-instruct"))
    with ray_session(cluster):
        rollouts = RolloutPool(folder, model, policy.rollout, cluster, 0)
        learner = PolicyLearner(folder, model, policy, cluster, 0)
        learner.wait_ready()
        rollouts.wait_ready()
        learner.connect(rollouts)
        with MemoryMonitor(os.getpid()) as before:
            learner.weights()
        engine, whole = [], []
        with MemoryMonitor(os.getpid()) as during:
            for version in range(ROUNDS + WARM_UP):
                began = time.monotonic()
                engine.append(rollouts.sync(learner.weights(version)).seconds)
                whole.append(time.monotonic() - began)
        count = learner.weights().count
        rollouts.stop()
        learner.stop()
    engine, whole = engine[WARM_UP:], whole[WARM_UP:]
    return [
        backend.replace("_", " "),
        str(bucket_mib),
        str(count),
        f"{statistics.median(engine):.3f} ({min(engine):.3f} to {max(engine):.3f})",
        f"{statistics.median(whole):.3f}",
        f"{1024 * (during.peak_gb - before.peak_gb) * 1e9 / 2**30:.0f}",
    ]


def main() -> None:
    """Measure all ways."""
    header = ["way", "bucket, MiB", "buckets", "engine, s (range)", "in all, s", "memory beyond that before, MiB"]
    body = (
        "SmolLM2-135M, 269 MB in bfloat16; `engine` is how long the engine loads and checks instead of generating, `in all` also "
    )
    body += f"gathering, copying and verifying digests. Medians of {ROUNDS}.\n\n" + table(header, [measure(*way) for way in WAYS])
    write_section("weight_sync", "Weights from learner to engine", "python -m benchmarks.weight_sync", body)
    print(body)


if __name__ == "__main__":
    main()
