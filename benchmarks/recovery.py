"""How long a part of the service is gone when its process is killed, and what a checkpoint costs, on the demo's model."""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.cluster.session import ray_session
from actors.learner.policy_gang import PolicyLearner
from actors.rollout.pool import RolloutPool
from actors.scorer.pool import ScorerPool
from benchmarks.common import demo_recipe, table, write_section
from benchmarks.overheads import ATTENTION, CLUSTER, MODEL, answers_of, requests, scored_rows
from benchmarks.step_time import value_model
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.errors import LearnerLostError
from dvpo_ray.models.packaged import resolve_model

WANTED = {"rollout actor": 25, "scorer": 15, "learner": 40}
PAIRS = 5


def kill(name: str) -> None:
    """End an actor's process by the signal that cannot be caught."""
    os.kill(ray.get(ray.get_actor(name).pid.remote()), signal.SIGKILL)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def checkpoint(learner: PolicyLearner, store: CheckpointStore, step: int) -> None:
    """A whole checkpoint, begun and ended."""
    folder = store.begin(step)
    learner.begin_checkpoint(str(folder))
    store.finish(step, folder, learner.end_checkpoint(), {"step": step})


def main() -> None:
    """Kill one part after the other, then checkpoint in every second step."""
    policy = demo_recipe().policy
    folder, rows, asked = str(resolve_model(MODEL)), scored_rows(), requests()
    with ray_session(CLUSTER), tempfile.TemporaryDirectory(prefix="dvpo-recovery-") as scratch:
        store = CheckpointStore(Path(scratch), keep_last=1)
        rollouts = RolloutPool(folder, ATTENTION, policy.rollout, CLUSTER, 0)
        scorers = ScorerPool(folder, str(value_model()), ATTENTION, policy.scorer, policy.rollout.temperature, CLUSTER)
        learner = PolicyLearner(folder, ATTENTION, policy, CLUSTER, 0)
        learner.wait_ready()
        scorers.wait_ready()
        rollouts.wait_ready()
        learner.connect(rollouts)
        handle = ray.put(rows)

        def generate() -> None:
            ray.get(list(rollouts.generate(asked)))

        def score() -> None:
            scorers.wait(list(scorers.score(ray.put(answer) for answer in answers_of(rows))))

        def go_back() -> None:
            try:
                learner.step(0, 0.0, [handle])
            except LearnerLostError:
                learner.restart()
                newest = store.newest()
                assert newest is not None
                learner.load_checkpoint(str(newest.folder))
                rollouts.sync(learner.weights(newest.step))
                return
            raise AssertionError("the learner was not killed")

        learner.step(0, 0.0, [handle])
        rollouts.sync(learner.weights(1))
        usual = {"rollout actor": timed(generate), "scorer": timed(score)}
        written = timed(lambda: checkpoint(learner, store, 1))
        found = {}
        for name, actor, work in (
            ("rollout actor", "rollout-0", generate),
            ("scorer", "scorer-0", score),
            ("learner", "learner-0", go_back),
        ):
            kill(actor)
            found[name] = timed(work) - usual.get(name, 0.0)
        lines = [[name, f"{seconds:.1f}", str(WANTED[name])] for name, seconds in found.items()]
        with_checkpoint, without = [], []
        for step in range(PAIRS):
            unfinished = store.begin(step + 2)
            learner.begin_checkpoint(str(unfinished))
            with_checkpoint.append(timed(lambda: learner.step(0, 0.0, [handle])))
            store.finish(step + 2, unfinished, learner.end_checkpoint(), {"step": step + 2})
            without.append(timed(lambda: learner.step(0, 0.0, [handle])))
        for pool in (rollouts, scorers, learner):
            pool.stop()
    extra = statistics.median(a - b for a, b in zip(with_checkpoint, without, strict=True))
    body = "From the kill until the part does its work again (the learner: is back on the last checkpoint and the engine has its "
    body += "weights), less what the work itself takes.\n\n" + table(["part", "seconds", "wanted, at most"], lines)
    body += f"\nA checkpoint of SmolLM2-135M (1.6 GB) takes {written:.1f} s when all wait for it. While the learner trains on "
    body += f"32 answers meanwhile, its part of the step takes {statistics.median(with_checkpoint):.2f} s instead of "
    body += f"{statistics.median(without):.2f} s: {extra:+.2f} s a checkpoint (median of {PAIRS} pairs).\n"
    write_section("recovery", "Recovery and checkpoints", "python -m benchmarks.recovery", body)
    print(body)


if __name__ == "__main__":
    main()
