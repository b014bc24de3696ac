"""The share of time that goes into steps that count while something is killed every minute: that part is started again, or all.

The demo's policy training on the demo's model. ``parts``: rollout actor, scorer and learner are killed in turn, and the run's
own recovery brings them back. ``all``: driver and all its processes are killed, and the job is started again with
``--resume auto``, which is what a system without recovery of parts comes to.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psutil

from benchmarks.chaos import PARTS, events, processes_of, start
from benchmarks.common import RUNS, table, write_section
from benchmarks.step_time import value_model
from dvpo_ray.config import PipelineRecipe, PolicyRecipe, load_recipe
from dvpo_ray.config.loading import build

EVERY_S = 60.0
COMMIT_EVERY = 2
FOLDER = RUNS / "failures"


def recipe_of(name: str, steps: int) -> PolicyRecipe:
    """The demo's policy training, from a sealed value model, without evaluations."""
    tree = load_recipe(PipelineRecipe, "demo").model_dump(mode="json")
    policy = tree["policy"] | {"steps": steps, "evaluation": None, "value_model": str(value_model())}
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


def measure(name: str, victims: list[str], steps: int) -> dict[str, Any]:
    """One line of the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    recipe, began = recipe_of(name, steps), time.monotonic()
    killer = Killer(itertools.cycle(victims or ["nothing"]))
    resumed = []
    for life in itertools.count():
        killer.driver = start(recipe, FOLDER, "auto" if life else "never")
        if life == 0 and victims:
            killer.start()
        for event in events(killer.driver):
            print(name, json.dumps(event)[:150], flush=True)
            if life and event["event"] == "phase" and "going on after" in event["text"]:
                resumed.append(time.monotonic() - killer.at)
        if killer.driver.wait() == 0:
            break
        if killer.driver.returncode != -signal.SIGKILL:
            raise SystemExit(f"{name}: the run ended with exit code {killer.driver.returncode}")
    if victims:
        killer.stop()
    result = json.loads((FOLDER / name / "result.json").read_text())
    return {
        "share": result["effective_time_share"],
        "seconds": time.monotonic() - began,
        "step": result["seconds_per_step"],
        "killed": len(killer.killed),
        "resumed": max(resumed, default=None),
    }


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    value_model()
    ways = {"nothing": [], "parts": list(PARTS), "all": ["all"]}
    found = {name: measure(name, victims, arguments.steps) for name, victims in ways.items()}
    texts = {
        "nothing": "nothing",
        "parts": "a rollout actor, a scorer, the learner, in turn",
        "all": "driver and all, then `--resume auto`",
    }
    rows = [
        [texts[name], one["killed"], one["share"], f"{one['seconds']:.0f}", f"{one['step']:.1f}"] for name, one in found.items()
    ]
    body = f"{arguments.steps} steps of the demo's policy training, commits every {COMMIT_EVERY} steps, one kill every "
    body += f"{EVERY_S:.0f} s from the start of the job on.\n\n"
    body += table(["killed", "kills", "share of time in steps that count", "seconds in all", "seconds a step (median)"], rows)
    if found["all"]["resumed"] is not None:
        body += f"\nA killed driver's run went on after {found['all']['resumed']:.0f} s at most (wanted: 60).\n"
    write_section("failures", "Training while things fail", f"python -m benchmarks.failures --steps {arguments.steps}", body)
    print(body)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
