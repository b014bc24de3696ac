"""What adapters save: the demo's learner and engine, all weights trained against LoRA of rank 16, on the same random rows."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace

import numpy as np
import ray

from actors.cluster.session import ray_session
from actors.learner.policy_gang import PolicyLearner
from actors.rollout.pool import RolloutPool
from benchmarks.common import demo_recipe, table, write_section
from benchmarks.overheads import scored_rows
from dvpo_ray.config.sections import ClusterSection, LoraSection, ModelSection
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.planning.devices import parse_devices
from dvpo_ray.planning.memory import processes
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.runs.memory import MemoryMonitor
from dvpo_ray.types import Ragged

STEPS, WARM_UP = 6, 1
RANK = 16


def measure(lora: LoraSection | None) -> list[str]:
    """One line of the table."""
    policy = demo_recipe().policy.model_copy(update={"lora": lora})
    cluster, model = ClusterSection(), ModelSection(attention="eager")
    folder = resolve_model("smollm2-135m-instruct")
    rows = scored_rows()
    seconds, optimizer, engine, sent = [], [], [], 0
    with ray_session(cluster):
        learner = PolicyLearner(str(folder), model, policy, cluster, 0)
        learner.wait_ready()
        with MemoryMonitor(os.getpid()) as memory:
            for step in range(STEPS):
                versions = Ragged.of([np.full(n, step) for n in rows.response_ids.lengths], np.int32)
                given = [ray.put(replace(rows, versions=versions))]
                began = time.monotonic()
                metrics = learner.step(step, 0.05, given).metrics
                seconds.append(time.monotonic() - began)
                optimizer.append(metrics["seconds/optimizer"])
        rollouts = RolloutPool(str(folder), model, policy.rollout, cluster, 0)
        rollouts.wait_ready()
        learner.connect(rollouts)
        for version in range(STEPS):
            served = rollouts.sync(learner.weights(STEPS + version))
            engine.append(served.seconds)
            sent = served.bytes
        rollouts.stop()
        learner.stop()
    seconds = seconds[WARM_UP:]
    planned = processes(policy, ModelShape.from_folder(folder), "eager", parse_devices("here").device)[0].total
    return [
        "all weights" if lora is None else f"LoRA, rank {lora.rank}",
        f"{memory.peak_by_process_gb['PolicyLearnerRank']:.2f}",
        f"{planned / 1e9:.2f}",
        f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})",
        f"{statistics.median(optimizer[WARM_UP:]):.3f}",
        f"{sent / 1e6:.1f}",
        f"{statistics.median(engine[WARM_UP:]):.3f}",
    ]


def main() -> None:
    """Measure both."""
    header = ["trained", "learner's peak, GB", "planned, GB", "step, s (range)", "optimizer, s", "sent, MB", "engine update, s"]
    body = (
        "SmolLM2-135M in bfloat16, 32 rows a step; `engine update` is how long the engine merges, loads and checks. Medians of "
    )
    body += f"{STEPS - WARM_UP} after a first one.\n\n"
    body += table(header, [measure(lora) for lora in (None, LoraSection(rank=RANK))])
    write_section("lora", "Adapters instead of all weights", "python -m benchmarks.lora", body)
    print(body)


if __name__ == "__main__":
    main()
