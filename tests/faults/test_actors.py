"""Actors killed in the middle of their work: nothing is lost, nothing is trained twice, and only their work is done again."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
import ray as ray_module

from actors.placement import keep_logs
from dvpo_ray.run import Event
from jobs.train_policy import train_policy
from tests.real import ROLLOUT, STEPS, MakePolicyRecipe, assert_books_balance, metrics

pytestmark = pytest.mark.integration


class Killer:
    """A listener that sends actors signals that cannot be caught when a step is done: ``{step: (actor, signal)}``. A process is
    ended; one that is to hang is stopped with all processes under it."""

    def __init__(self, plan: dict[int, tuple[str, signal.Signals]]) -> None:
        self._plan = dict(plan)
        self.phases: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "phase":
            self.phases.append(event.text)
        if event.step in self._plan and "seconds/step" in event.metrics:
            name, number = self._plan.pop(event.step)
            pid = ray_module.get(ray_module.get_actor(name).pid.remote(), timeout=60)
            hanging = psutil.Process(pid).children(recursive=True) if number == signal.SIGSTOP else []
            for process in hanging or [psutil.Process(pid)]:
                process.send_signal(number)

    @property
    def done(self) -> bool:
        return not self._plan


def test_every_kind_of_actor_is_killed_and_every_number_comes_out_the_same(
    policy_recipe: MakePolicyRecipe, straight: Path, tmp_path: Path
) -> None:
    """While answers are generated the scorer and a rollout actor are killed, and the engine of another hangs; the learner is
    killed after a step, so that two steps are trained again from the last commit. New rollout actors serve the weights of their
    time."""
    plan = {
        1: ("scorer-0", signal.SIGKILL),
        2: ("rollout-0", signal.SIGKILL),
        3: ("rollout-1", signal.SIGSTOP),
        4: ("learner-0", signal.SIGKILL),
    }
    killer = Killer(plan)
    rollout = ROLLOUT | {"actors": 2, "row_timeout_s": 20.0}
    recipe = policy_recipe(tmp_path, "recovered", evaluation=None, commit={"every": 2}, rollout=rollout)
    result = train_policy(recipe, killer)
    assert killer.done
    assert any("learner rank died" in phase for phase in killer.phases)
    assert any("going on after step 2" in phase for phase in killer.phases)
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
