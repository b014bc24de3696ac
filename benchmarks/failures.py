"""The share of time that goes into work that counts while something is killed every minute: that part is started again, or all.

The demo's policy training, with the value model of the demo of ``benchmarks.seeds`` (seed 0), which is also the run in which
nothing fails. ``parts``: rollout actor, scorer and learner are killed in turn, and the run's
own recovery brings them back. ``all``: driver and all its processes are killed, and the job is started again with
``--resume auto``, which is what a system without recovery of parts comes to.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import psutil

from benchmarks.chaos import PARTS, events, processes_of, start
from benchmarks.common import RUNS, table, write_section
from benchmarks.seeds import demo
from dvpo_ray.config import PipelineRecipe, PolicyRecipe, load_recipe
from dvpo_ray.config.loading import build

EVERY_S = 60.0
COMMIT_EVERY = 2
FOLDER = RUNS / "failures"
UNDISTURBED = RUNS / "demo-seed-0"


def recipe_of(name: str) -> PolicyRecipe:
    """The demo's policy training, from the demo's value model."""
    value_model = UNDISTURBED / "value" / "value-model"
    tree = load_recipe(PipelineRecipe, "demo").policy_recipe(str(value_model)).model_dump(mode="json")
    policy = tree["policy"]
    policy["commit"] |= {"every": COMMIT_EVERY}
    for part in PARTS:
        policy[part] |= {"max_restarts": 100}
    run = {"name": name, "output_dir": str(FOLDER), "seed": 0, "overwrite": True}
    return build(PolicyRecipe, {"run": run, "model": tree["model"], "policy": policy})


class Killer(threading.Thread):
    """Kills what is its turn every ``EVERY_S`` seconds, until told to stop."""

    def __init__(self, victims: Iterator[str]) -> None:
        super().__init__(daemon=True)
        self.driver: subprocess.Popen[str] | None = None
        self.killed: list[str] = []
        self.at = 0.0
        self._victims = victims
        self._done = threading.Event()

    def run(self) -> None:
        """Kill."""
        while not self._done.wait(EVERY_S):
            assert self.driver is not None
            victim = next(self._victims)
            with suppress(psutil.NoSuchProcess):
                driver = psutil.Process(self.driver.pid)
                whole = [driver, *driver.children(recursive=True)]
                processes = whole if victim == "all" else processes_of(self.driver, victim)[:1]
                self.at = time.monotonic()
                for process in processes:
                    process.kill()
                self.killed += [victim] * bool(processes)

    def stop(self) -> None:
        """No more."""
        self._done.set()
        self.join()


def measure(name: str, victims: Sequence[str]) -> dict[str, Any]:
    """One line of the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    recipe, began = recipe_of(name), time.monotonic()
    killer = Killer(itertools.cycle(victims))
    resumed = []
    for life in itertools.count():
        killer.driver = start(recipe, FOLDER, "auto" if life else "never")
        if life == 0:
            killer.start()
        for event in events(killer.driver):
            print(name, json.dumps(event)[:150], flush=True)
            if life and event["event"] == "phase" and "going on after" in event["text"]:
                resumed.append(time.monotonic() - killer.at)
        if killer.driver.wait() == 0:
            break
        if killer.driver.returncode != -signal.SIGKILL:
            raise SystemExit(f"{name}: the run ended with exit code {killer.driver.returncode}")
    killer.stop()
    found = json.loads((FOLDER / name / "result.json").read_text())
    return found | {"killed": len(killer.killed), "seconds": time.monotonic() - began, "resumed": max(resumed, default=None)}


def main() -> None:
    """Measure and write."""
    demo(0)
    undisturbed = json.loads((UNDISTURBED / "policy" / "result.json").read_text())
    found = {"nothing": undisturbed | {"killed": 0, "seconds": undisturbed["seconds_total"]}}
    found["a rollout actor, a scorer, the learner, in turn"] = measure("parts", list(PARTS))
    found["driver and all, then `--resume auto`"] = whole = measure("all", ["all"])
    rows = [
        [
            what,
            one["killed"],
            f"{one['effective_time_share']:.2f}",
            f"{one['seconds']:.0f}",
            f"{one['seconds_per_step']:.1f}",
            f"{one['gold_after']:.3f} ({one['gold_after_ci95'][0]:.3f} to {one['gold_after_ci95'][1]:.3f})",
        ]
        for what, one in found.items()
    ]
    body = f"The demo's policy training with its evaluations; commits every {COMMIT_EVERY} steps (10 where nothing is killed); "
    body += f"one kill every {EVERY_S:.0f} s from the start of the job on.\n\n"
    header = ["killed", "kills", "share of time in work that counts", "seconds in all", "seconds a step (median)", "gold (95%)"]
    body += table(header, rows)
    if whole["resumed"] is not None:
        body += f"\nA killed driver's run went on after {whole['resumed']:.0f} s at most (wanted: 60).\n"
    write_section("failures", "Training while things fail", "python -m benchmarks.failures", body)
    print(body)


if __name__ == "__main__":
    main()
