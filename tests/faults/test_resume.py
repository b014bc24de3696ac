"""A driver killed by the signal that cannot be caught, and the run gone on with in a new process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from actors.cluster.hosting import hosted
from benchmarks.chaos import events, kill_driver, start
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config import PipelineRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.errors import RunStoppedError
from dvpo_ray.runs.folder import run_folder
from dvpo_ray.runs.run import Event
from jobs.pipeline import run_pipeline
from jobs.train_policy import train_policy
from tests.support.hosts import Hosts
from tests.support.real import ROLLOUT, STEPS, MakePolicyRecipe, metrics, value_tree

pytestmark = pytest.mark.integration
CLOCKS = ("seconds", "first_began")
TIMINGS = ("seconds/", "speed/", "idle", "time/")


def read_until(process: subprocess.Popen[str], wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Read what a driver says until an event is as wanted."""
    assert any(wanted(event) for event in events(process)), "the run ended too early"


def test_a_driver_stopped_and_a_driver_killed_go_on_as_if_nothing_had_happened(
    policy_recipe: MakePolicyRecipe, straight: Path, tmp_path: Path
) -> None:
    """Bit for bit: parameters, optimizer state, ledger and metrics are those of a run in which nothing fails."""
    recipe = policy_recipe(tmp_path, "broken", evaluation=None, checkpoint={"every": 3})
    folder = tmp_path / "broken"
    stopped = start(recipe, tmp_path, "never")
    read_until(stopped, lambda event: event["event"] == "step" and event["step"] == 1)
    os.kill(stopped.pid, signal.SIGTERM)
    out, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 143 and "as asked" in out, out
    first = CheckpointStore(folder / "checkpoints").newest()
    assert first is not None and 1 <= first.step < 3
    assert first.state["ledger"]["trained"] == 16 * first.step
    killed = start(recipe, tmp_path, "auto")
    read_until(killed, lambda event: event["event"] == "step" and event["step"] == 5)
    kill_driver(killed)
    again = start(recipe, tmp_path, "auto")
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0 and "going on after step 3" in out, out
    a, b = (CheckpointStore(run / "checkpoints").newest() for run in (straight, folder))
    assert a is not None and b is not None and a.step == b.step == STEPS
    left, right = (load_file(checkpoint.folder / "learner-00000.safetensors") for checkpoint in (a, b))
    assert set(left) == set(right)
    assert all(left[name].equal(right[name]) for name in left if name != "rng")
    states = [{name: part for name, part in checkpoint.state.items() if name not in CLOCKS} for checkpoint in (a, b)]
    assert states[0] == states[1]
    assert [without_timings(line) for line in metrics(straight)] == [without_timings(line) for line in metrics(folder)]


@pytest.mark.slow
def test_a_run_whose_machine_is_lost_goes_on_from_its_copies(
    policy_recipe: MakePolicyRecipe, straight: Path, tmp_path: Path
) -> None:
    """Nothing of the run's folder is left: its checkpoints, settings and records come from where they were copied to."""
    checkpoints = {"every": 3, "copy_to": f"file://{tmp_path}/away"}
    recipe = policy_recipe(tmp_path, "lost", evaluation=None, checkpoint=checkpoints)

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunStoppedError, match="stopped after step 4"):
        train_policy(recipe, stop)
    shutil.rmtree(tmp_path / "lost")
    phases: list[str] = []
    again = recipe.model_copy(update={"run": recipe.run.model_copy(update={"resume": "auto"})})
    result = train_policy(again, lambda event: phases.append(event.text))
    assert any("going on after step 4" in phase for phase in phases)
    assert result["checkpoints_copied"] == 1 and result["checkpoints_not_copied"] == 0
    assert [without_timings(line) for line in metrics(straight)] == [without_timings(line) for line in metrics(tmp_path / "lost")]


def test_a_demo_stopped_at_the_end_of_its_first_half_does_not_begin_the_second(
    tiny_model: Path, pairs: Path, prompts: tuple[Path, Path], tmp_path: Path, hosts: Hosts
) -> None:
    policy = {
        "steps": 1,
        "data": {"source": str(prompts[0]), "max_prompt_tokens": 64},
        "rollout": ROLLOUT,
        "scorer": {"dtype": "float32"},
        "learner": {"dtype": "float32"},
    }
    recipe = build(PipelineRecipe, value_tree(tiny_model, pairs, tmp_path, epochs=1) | {"policy": policy})
    folder = run_folder(recipe)

    def stop(event: Event) -> None:
        if event.text.startswith("measuring accuracy"):
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = pytest.raises(RunStoppedError, match="stopped after value training, as asked: --resume auto goes on")
    with hosted(hosts), stopped:
        run_pipeline(recipe, stop)
    assert (folder / "value" / "result.json").is_file() and not (folder / "policy").exists()
    phases: list[str] = []
    again = recipe.model_copy(update={"run": recipe.run.model_copy(update={"resume": "auto"})})
    with hosted(hosts):
        run_pipeline(again, lambda event: phases.append(event.text))
    assert not any("measuring accuracy" in phase for phase in phases), "the first half had ended"
    assert [line["step"] for line in metrics(folder / "policy") if "seconds/step" in line] == [0]


def without_timings(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "time" and not name.startswith(TIMINGS)}
