"""A driver killed by the signal that cannot be caught, and the run gone on with in a new process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from dvpo_ray.commits import CommitStore
from dvpo_ray.config import PolicyRecipe, dump_resolved
from dvpo_ray.config.loading import to_toml
from tests.real import STEPS, MakePolicyRecipe, metrics

pytestmark = pytest.mark.integration
CLOCKS = ("seconds", "first_began")
TIMINGS = ("seconds/", "speed/", "idle", "time/")


def start(recipe: PolicyRecipe, folder: Path, resume: str) -> subprocess.Popen[str]:
    """``dvpo policy train`` in a process and a Ray of its own."""
    tree = json.loads(dump_resolved(recipe))
    file = folder / f"{recipe.run.name}.toml"
    file.write_text(to_toml(drop_none(tree)))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "dvpo_ray.cli", "policy", "train", str(file), "--json", "--resume", resume]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def drop_none(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: drop_none(value) for name, value in tree.items() if value is not None}
    return tree


def kill(process: subprocess.Popen[str]) -> None:
    """End a driver by the signal that cannot be caught; what it started must end too, of Ray's own agents later."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    _, alive = psutil.wait_procs(family, timeout=20)
    for agent in [survivor for survivor in alive if survivor.name().endswith("Agent")]:
        agent.kill()
        alive.remove(agent)
    assert not alive, f"outlived their driver: {alive}"


def read_until(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Read what a driver says until an event is as wanted."""
    assert process.stdout
    assert any(wanted(json.loads(line)) for line in process.stdout), "the run ended too early"


def test_a_driver_stopped_and_a_driver_killed_go_on_as_if_nothing_had_happened(
    policy_recipe: MakePolicyRecipe, straight: Path, tmp_path: Path
) -> None:
    """Bit for bit: parameters, optimizer state, ledger and metrics are those of a run in which nothing fails."""
    recipe = policy_recipe(tmp_path, "broken", evaluation=None, commit={"every": 3})
    folder = tmp_path / "broken"
    stopped = start(recipe, tmp_path, "never")
    read_until(stopped, lambda event: event["event"] == "step" and event["step"] == 1)
    os.kill(stopped.pid, signal.SIGTERM)
    out, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 1 and "as asked" in out, out
    first = CommitStore(folder / "commits").newest()
    assert first is not None and 1 <= first.step < 3
    assert first.state["ledger"]["trained"] == 16 * first.step
    killed = start(recipe, tmp_path, "auto")
    read_until(killed, lambda event: event["event"] == "step" and event["step"] == 5)
    kill(killed)
    again = start(recipe, tmp_path, "auto")
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "going on after step 3" in out, out
    a, b = (CommitStore(run / "commits").newest() for run in (straight, folder))
    assert a is not None and b is not None and a.step == b.step == STEPS
    left, right = (load_file(commit.folder / "learner-00000.safetensors") for commit in (a, b))
    assert set(left) == set(right)
    assert all(left[name].equal(right[name]) for name in left if name != "rng")
    states = [{name: part for name, part in commit.state.items() if name not in CLOCKS} for commit in (a, b)]
    assert states[0] == states[1]
    assert [without_timings(line) for line in metrics(straight)] == [without_timings(line) for line in metrics(folder)]


def without_timings(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "time" and not name.startswith(TIMINGS)}
