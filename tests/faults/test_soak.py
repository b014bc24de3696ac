"""A long run in which something is killed every few seconds. Not part of ``make test``: ``make soak``."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.chaos import PARTS, events, kill_driver, processes_of, start
from dvpo_ray.checkpoints.store import CheckpointStore
from tests.support.real import ROLLOUT, MakePolicyRecipe, assert_books_balance, metrics

pytestmark = [pytest.mark.integration, pytest.mark.soak]
STEPS = 100
LIMIT_S = 600
PAUSE_S = (2.0, 8.0)
AGAIN = 0.25
VICTIMS = {"rollout": 5, "scorer": 4, "learner": 2, "driver": 1}


class Killer(threading.Thread):
    """Kills a random part of a driver's run every few seconds in which it makes steps, until the driver ends or is the victim.

    One kill in four is followed by another one before the run has recovered.
    """

    def __init__(self, driver: subprocess.Popen[str], luck: random.Random, killed: Counter[str]) -> None:
        super().__init__(daemon=True)
        self._driver = driver
        self._luck = luck
        self._killed = killed
        self._done = threading.Event()
        self.stepped = threading.Event()

    def run(self) -> None:
        while True:
            again = self._luck.random() < AGAIN
            while not again and not self.stepped.wait(1.0):
                if self._done.is_set():
                    return
            if self._done.wait(self._luck.uniform(*PAUSE_S)):
                return
            self.stepped.clear()
            victim = self._luck.choices(list(VICTIMS), weights=list(VICTIMS.values()))[0]
            if victim == "driver":
                self._killed[victim] += 1
                kill_driver(self._driver)
                return
            there = processes_of(self._driver, victim)
            if there:
                with suppress(psutil.NoSuchProcess):
                    self._luck.choice(there).kill()
                    self._killed[victim] += 1

    def stop(self) -> None:
        self._done.set()
        self.stepped.set()
        self.join()


def test_nothing_is_lost_and_nothing_is_trained_twice(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """100 steps; all parts of the run and its driver are killed at random moments, and the job is started again when it ends."""
    recipe = policy_recipe(
        tmp_path,
        "soak",
        steps=STEPS,
        evaluation=None,
        checkpoint={"every": 2},
        rollout=ROLLOUT | {"actors": 2, "max_restarts": 1000, "row_timeout_s": 20.0},
        scorer={"dtype": "float32", "rows_per_call": 8, "max_restarts": 1000},
        learner={"dtype": "float32", "learning_rate": 1e-4, "token_budget": 512, "max_restarts": 1000},
    )
    luck, killed, drivers, began = random.Random(0), Counter[str](), 0, time.monotonic()
    driver: subprocess.Popen[str] | None = None
    last: dict[str, Any] = {}
    while driver is None or driver.returncode != 0:
        assert time.monotonic() - began < LIMIT_S, f"not done in time; killed {dict(killed)}"
        driver = start(recipe, tmp_path, "auto")
        drivers += 1
        killer = Killer(driver, luck, killed)
        killer.start()
        try:
            for last in events(driver):
                if last.get("event") == "step":
                    killer.stepped.set()
            driver.wait()
        finally:
            killer.stop()
            driver.terminate()
        assert driver.returncode in (0, 1, -9), f"exit code {driver.returncode} is that of bad input: {last}"
    print(f"{STEPS} steps in {time.monotonic() - began:.0f} s, {drivers} drivers, killed {dict(killed)}")
    assert all(killed[part] for part in PARTS)
    assert_books_balance(tmp_path / "soak", STEPS)
    checkpoint = CheckpointStore(tmp_path / "soak" / "checkpoints").newest()
    assert checkpoint is not None and checkpoint.step == STEPS and checkpoint.state["ledger"]["trained"] == 16 * STEPS
    assert max(line["gap/abs_log_prob"] for line in metrics(tmp_path / "soak")) <= 1e-3
