"""Drivers as processes of their own, and the parts of their runs killed by the signal that cannot be caught."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import to_toml
from dvpo_ray.config import PolicyRecipe, dump_resolved

# How Ray titles the process of each part.
PARTS = {"rollout": "ray::RolloutActor", "scorer": "ray::ScorerActor", "learner": "ray::PolicyLearnerRank"}
PATIENCE_S = 20.0


def start(recipe: PolicyRecipe, folder: Path, resume: str) -> subprocess.Popen[str]:
    """``dvpo policy train --json`` in a process and a Ray of its own; its recipe is written into ``folder``."""
    file = folder / f"{recipe.run.name}.toml"
    file.write_text(to_toml(without_none(json.loads(dump_resolved(recipe)))))
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "DVPO_EMBEDDED"))}
    command = [sys.executable, "-m", "jobs.cli.main", "policy", "train", str(file), "--json", "--resume", resume]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def without_none(tree: Any) -> Any:
    """TOML has no word for None."""
    if isinstance(tree, dict):
        return {name: without_none(value) for name, value in tree.items() if value is not None}
    return tree


def events(driver: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What a driver says, as it says it, until it ends."""
    assert driver.stdout
    for line in driver.stdout:
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def processes_of(driver: subprocess.Popen[str], part: str) -> list[psutil.Process]:
    """The processes of a part of the run, as many as there are now."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(PARTS[part]):
                    found.append(process)
    return found


def kill_driver(driver: subprocess.Popen[str]) -> None:
    """End a driver; what it started must end too, of Ray's own agents later.

    Raises:
        RuntimeError: something outlived it.
    """
    family = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(60)
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    for agent in [survivor for survivor in alive if survivor.name().endswith("Agent")]:
        agent.kill()
        alive.remove(agent)
    if alive:
        raise RuntimeError(f"outlived their driver: {alive}")
