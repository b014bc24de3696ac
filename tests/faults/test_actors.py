"""Actors killed in the middle of their work: nothing is lost, nothing is trained twice, and only their work is done again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray as ray_module

from actors.cluster.session import keep_logs
from dvpo_ray.runs.run import Event
from jobs.train_policy import train_policy
from tests.support.real import ROLLOUT, STEPS, MakePolicyRecipe, assert_books_balance, metrics

pytestmark = [pytest.mark.integration, pytest.mark.slow]


Action = Callable[[], None]


def process_of(name: str) -> psutil.Process:
    return psutil.Process(ray_module.get(ray_module.get_actor(name).pid.remote(), timeout=60))


def kill(name: str) -> None:
    process_of(name).kill()


def hang(name: str) -> None:
    """Stop the engine's processes: what they are asked never comes."""
    for process in process_of(name).children(recursive=True):
        process.suspend()


def kill_engines() -> None:
    """End the engines' processes under every rollout actor that there is, not the actors."""
    for name in ray_module.util.list_named_actors():
        if name.startswith("rollout-"):
            for process in process_of(name).children(recursive=True):
                process.kill()


class Saboteur:
    """A listener that does something bad when a step is done: ``{step: action}``."""

    def __init__(self, plan: dict[int, Action]) -> None:
        self._plan = dict(plan)
        self.phases: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "phase":
            self.phases.append(event.text)
        if event.step in self._plan and "seconds/step" in event.metrics:
            self._plan.pop(event.step)()

    @property
    def done(self) -> bool:
        return not self._plan


def test_every_kind_of_actor_is_killed_and_every_number_comes_out_the_same(
    policy_recipe: MakePolicyRecipe, straight: Path, tmp_path: Path
) -> None:
    """The scorer and a rollout actor are killed, and the engine of another hangs; the learner is killed after a step, so that two
    steps are trained again from the last checkpoint; at last all engines die under actors that live. New rollout actors serve the
    weights of their time."""
    plan: dict[int, Action] = {
        1: partial(kill, "scorer-0"),
        2: partial(kill, "rollout-0"),
        3: partial(hang, "rollout-1"),
        4: partial(kill, "learner-0"),
        5: kill_engines,
    }
    saboteur = Saboteur(plan)
    rollout = ROLLOUT | {"actors": 2, "row_timeout_s": 20.0, "max_restarts": 10}
    recipe = policy_recipe(tmp_path, "recovered", evaluation=None, checkpoint={"every": 2}, rollout=rollout)
    result = train_policy(recipe, saboteur)
    assert saboteur.done
    assert any("learner rank died" in phase for phase in saboteur.phases)
    assert any("going on after step 2" in phase for phase in saboteur.phases)
    assert result["gvm_parameters_sha256"], "the value model was checked against its seal when it was loaded again"
    keep_logs(tmp_path / "logs")
    assert any("is stopped" in log.read_text() for log in (tmp_path / "logs").iterdir()), (
        "the log says what the engine's state was"
    )
    assert_books_balance(tmp_path / "recovered", STEPS)
    assert max(line["gap/abs_log_prob"] for line in metrics(tmp_path / "recovered")) <= 1e-3
    for a, b in zip(metrics(straight), metrics(tmp_path / "recovered"), strict=True):
        for name in ("value/last", "kl/per_token", "optimizer/grad_norm", "loss/policy"):
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), (a["step"], name)
