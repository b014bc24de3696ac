"""The share of time that goes into work that counts while things are killed: the part is started again, or everything is.

The demo's policy training, with the value model of the demo of ``benchmarks.seeds`` (seed 0), which is also the run in which
nothing fails. ``parts``: rollout actor, scorer and learner are killed in turn, and the run's
own recovery brings them back. ``all``: driver and all its processes are killed, and the job is started again with
``--resume auto``, which is what a system without recovery of parts comes to.
"""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos import PARTS, events, processes_of, start
from benchmarks.common import RUNS, mean_of, table, write_section
from benchmarks.seeds import demo
from dvpo_ray.config import PipelineRecipe, PolicyRecipe, load_recipe
from dvpo_ray.config.loading import build
from dvpo_ray.io.json_files import iter_records, read_object
from dvpo_ray.runs.folder import METRICS
from dvpo_ray.runs.run import RESULT, write_json

CHECKPOINT_EVERY = 2
FOLDER = RUNS / "failures"
UNDISTURBED = RUNS / "demo-seed-0"


def recipe_of(name: str) -> PolicyRecipe:
    """The demo's policy training, from the demo's value model."""
    value_model = UNDISTURBED / "value" / "value-model"
    tree = load_recipe(PipelineRecipe, "demo").policy_recipe(str(value_model)).model_dump(mode="json")
    policy = tree["policy"]
    policy["checkpoint"] |= {"every": CHECKPOINT_EVERY}
    for part in PARTS:
        policy[part] |= {"max_restarts": 100}
    run = {"name": name, "output_dir": str(FOLDER), "seed": 0, "overwrite": True}
    return build(PolicyRecipe, {"run": run, "model": tree["model"], "policy": policy})


@dataclass(frozen=True)
class Arm:
    """A run, what is killed in it in turn, how often, and when it is given up because it may never end."""

    name: str
    what: str
    victims: Sequence[str]
    every_s: float
    limit_s: float = 1200.0


ARMS = (
    Arm("parts", "a rollout actor, a scorer, the learner, in turn, every 60 s", tuple(PARTS), 60.0),
    Arm("all-60", "driver and all every 60 s, then `--resume auto`", ("all",), 60.0, limit_s=300.0),
    Arm("all-150", "driver and all every 150 s, then `--resume auto`", ("all",), 150.0),
)


class Killer(threading.Thread):
    """Kills what is its turn every so many seconds, until told to stop."""

    def __init__(self, victims: Iterator[str], every_s: float) -> None:
        super().__init__(daemon=True)
        self._every_s = every_s
        self.driver: subprocess.Popen[str] | None = None
        self.killed: list[str] = []
        self.at = 0.0
        self._victims = victims
        self._done = threading.Event()

    def run(self) -> None:
        """Kill."""
        while not self._done.wait(self._every_s):
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


def measure(arm: Arm) -> dict[str, Any]:
    """One line of the table; an arm measured before is read."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = FOLDER / f"{arm.name}.json"
    if not done.is_file():
        write_json(done, _measure(arm))
    return read_object(done)


def _measure(arm: Arm) -> dict[str, Any]:
    recipe, began = recipe_of(arm.name), time.monotonic()
    folder = FOLDER / arm.name
    killer = Killer(itertools.cycle(arm.victims), arm.every_s)
    resumed = []
    for life in itertools.count():
        killer.driver = start(recipe, FOLDER, "auto" if life else "never")
        if life == 0:
            killer.start()
        for event in events(killer.driver):
            print(arm.name, json.dumps(event)[:150], flush=True)
            if life and event.get("event") == "phase" and "going on after" in event["text"]:
                resumed.append(time.monotonic() - killer.at)
        status = killer.driver.wait()
        if status not in (0, -signal.SIGKILL):
            raise SystemExit(f"{arm.name}: the run ended with exit code {status}")
        over = time.monotonic() - began > arm.limit_s
        if status == 0 or over:
            killer.stop()
            found = read_object(folder / RESULT) if status == 0 else unfinished(folder, time.monotonic() - began)
            return found | {"killed": len(killer.killed), "resumed": max(resumed, default=None)}
    raise AssertionError("lives do not end")


def unfinished(folder: Path, seconds: float) -> dict[str, Any]:
    """One line of the table for a run that did not end: what its records say."""
    lines = [line for _, _, line in iter_records(folder / METRICS) if not isinstance(line, Exception)]
    steps = [line["seconds/step"] for line in lines if "seconds/step" in line]
    work = sum(line.get("seconds/step", 0.0) + line.get("eval/seconds", 0.0) for line in lines)
    return {
        "effective_time_share": work / seconds,
        "seconds_per_step": statistics.median(steps) if steps else None,
        "gold_after": None,
        "steps": len(steps),
        "seconds_total": seconds,
    }


def gold(one: dict[str, Any]) -> str:
    """The held-out gold at a run's end."""
    if one["gold_after"] is None:
        return f"not finished: {one['steps']} steps done when given up"
    return f"{one['gold_after']:.3f} ({one['gold_after_ci95'][0]:.3f} to {one['gold_after_ci95'][1]:.3f})"


def main() -> None:
    """Measure and write."""
    demo(0)
    nothing = json.loads((UNDISTURBED / "policy" / "result.json").read_text())
    found = [("nothing", nothing | {"killed": 0, "resumed": None})]
    found += [(arm.what, measure(arm)) for arm in ARMS]
    rows = [
        [
            what,
            one["killed"],
            f"{one['effective_time_share']:.2f}",
            f"{one['seconds_total']:.0f}",
            "" if one["seconds_per_step"] is None else f"{one['seconds_per_step']:.1f}",
            gold(one),
            mean_of([one], "cut_share_after"),
        ]
        for what, one in found
    ]
    body = f"The demo's policy training with its evaluations; checkpoints every {CHECKPOINT_EVERY} steps (10 where nothing is "
    body += "killed); kills at equal times from the start of the job on, while it starts as well.\n\n"
    header = ["killed", "kills", "share of time in work that counts", "seconds in all", "seconds a step (median)", "gold (95%)"]
    header.append("answers cut")
    body += table(header, rows)
    resumed = [one["resumed"] for _, one in found if one["resumed"] is not None]
    if resumed:
        body += f"\nA killed driver's run went on {max(resumed):.0f} s after the kill at most (wanted: 60).\n"
    write_section("failures", "Training while things fail", "python -m benchmarks.failures", body)
    print(body)


if __name__ == "__main__":
    main()
