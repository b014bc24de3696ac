"""Ctrl-C, as a terminal sends it, at every moment of a pipeline: what is said and when, what is left, and going on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.chaos import events
from benchmarks.common import to_toml
from tests.support.real import ROLLOUT, files_left, metrics, value_tree

pytestmark = pytest.mark.integration
SAID_S, AT_ONCE_S, GONE_S = 1.0, 5.0, 10.0
PATIENCE = 120
VALUE_STEPS, POLICY_STEPS = 18, 6


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """Temporary files of the jobs; sockets' paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ints-"))
    yield folder
    shutil.rmtree(folder)


class Terminal:
    """A pipeline started at a terminal: it has a process group of its own, to all of which Ctrl-C goes."""

    def __init__(self, recipe: Path, temporary: Path) -> None:
        self._temporary = temporary
        self._before = files_left()
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "DVPO_EMBEDDED"))}
        command = [sys.executable, "-m", "jobs.cli.main", "demo", str(recipe), "--json", "--resume", "auto"]
        environment = clean | {"TMPDIR": str(temporary)}
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        self._events = events(self._process)
        self.told: list[dict[str, Any]] = []
        self._family: list[psutil.Process] = []

    def until(self, kind: str, text: str = "", step: int = 0) -> dict[str, Any]:
        """Read on to an event, whose text holds this one."""
        for event in self._events:
            self.told.append(event)
            if event.get("event") == kind and text in event["text"] and event["step"] >= step:
                return event
        raise AssertionError(f"the pipeline ended before it told of {kind} {text}: {self.told[-3:]}")

    def interrupt(self, signum: signal.Signals = signal.SIGINT) -> tuple[float, str]:
        """Ctrl-C; returns when, and what is said."""
        self._family = psutil.Process(self._process.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(self._process.pid, signum)
        said = self.until("stopping", "stopping")["text"]
        assert time.monotonic() - began < SAID_S, said
        return began, said

    def ends(self, since: float, within: float, code: int) -> str:
        """It ends in time, with an exit code, and leaves nothing behind; returns its last words."""
        rest = [event for event in self._events if self.told.append(event) is None]
        assert self._process.wait(PATIENCE) == code, self.told[-3:]
        took = time.monotonic() - since
        print(f"ended after {took:.1f} s of {within:.0f} s")
        assert took < within, self.told[-5:]
        _, alive = psutil.wait_procs(self._family, timeout=GONE_S)
        assert not alive, f"processes left behind: {alive}"
        assert files_left() - self._before == set()
        assert list(self._temporary.iterdir()) == []
        return str(rest[-1].get("message", "")) if rest else ""


def seconds_in(said: str) -> float:
    """The time that a sentence names."""
    found = re.search(r"within (\d+) s", said)
    assert found is not None, said
    return float(found[1])


@pytest.fixture(scope="module")
def recipe(tiny_model: Path, pairs: Path, prompts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A value model of 18 steps without checkpoints, and a policy of 6 with an evaluation before and after."""
    folder = tmp_path_factory.mktemp("interrupted")
    policy = {
        "steps": POLICY_STEPS,
        "data": {"source": str(prompts[0]), "max_prompt_tokens": 64},
        "rollout": ROLLOUT,
        "scorer": {"dtype": "float32"},
        "learner": {"dtype": "float32"},
        "evaluation": {"source": str(prompts[1]), "gold": "tests.support.fakes:early_letters"},
        "checkpoint": {"every": 4},
    }
    tree = value_tree(tiny_model, pairs, folder, checkpoint={"every": 0}) | {"policy": policy}
    tree["value"]["learner"]["dtype"] = "float32"
    file = folder / "pipeline.toml"
    file.write_text(to_toml(tree))
    return file


def test_ctrl_c_before_the_policy(recipe: Path, temporary: Path) -> None:
    # While Ray and the actors start, and again: at once.
    terminal = Terminal(recipe, temporary)
    terminal.until("phase", "pairs to train on")
    _, said = terminal.interrupt()
    assert "what is being done is given up" in said and "nothing of it is kept" in said
    began, said = terminal.interrupt()
    assert said == "stopping at once, within 5 s"
    terminal.ends(began, AT_ONCE_S, 130)

    # In value training, which makes no checkpoints unless it is stopped.
    terminal = Terminal(recipe, temporary)
    steps = terminal.until("step", step=3)["total"]
    assert steps == VALUE_STEPS
    began, said = terminal.interrupt()
    assert "will be finished and checkpointed (within" in said and "losing all" in said
    assert re.search(rf"stopped after step \d+ of {steps}, as asked: --resume auto", terminal.ends(began, seconds_in(said), 130))


@pytest.mark.slow
def test_ctrl_c_at_every_moment_of_the_policy(recipe: Path, temporary: Path) -> None:
    # In a rollout of policy training, and again: at once.
    terminal = Terminal(recipe, temporary)
    terminal.until("phase", "training for 6 steps")
    terminal.until("stage", "rollout", step=3)
    _, said = terminal.interrupt()
    assert said.startswith("stopping: step 3 of 6, which is in hand, will be finished and checkpointed (within")
    began, _ = terminal.interrupt()
    terminal.ends(began, AT_ONCE_S, 130)

    # While the policy learns; what was not checkpointed is trained again.
    terminal = Terminal(recipe, temporary)
    terminal.until("phase", "training for 6 steps")
    terminal.until("stage", "learn", step=2)
    began, said = terminal.interrupt()
    assert "stopped after step 2 of 6, as asked: --resume auto goes on" in terminal.ends(began, seconds_in(said), 130)

    # In the evaluation at the end, by SIGTERM to the whole process group.
    terminal = Terminal(recipe, temporary)
    terminal.until("phase", "going on after step 2")
    terminal.until("phase", "answering held-out prompts after 6 steps")
    began, said = terminal.interrupt(signal.SIGTERM)
    assert "the evaluation is given up, step 6 is kept as a checkpoint" in said
    assert "stopped after step 6 of 6" in terminal.ends(began, seconds_in(said), 143)

    terminal = Terminal(recipe, temporary)
    terminal.until("phase", "saving the policy")
    terminal.ends(time.monotonic(), PATIENCE, 0)
    run = json.loads((recipe.parent / "value" / "policy" / "result.json").read_text())
    assert run["steps"] == POLICY_STEPS and "gold_after" in run
    for part, count in (("value", VALUE_STEPS), ("policy", POLICY_STEPS)):
        lines = [line for line in metrics(recipe.parent / "value" / part) if "seconds/step" in line]
        assert [line["step"] for line in lines] == list(range(count)), "every step once, in order"
