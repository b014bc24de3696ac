"""The loop of trainings on pairs, on a fake gang: ranks that are lost, budgets, and updates that were withheld."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.errors import LearnerLostError, RunStoppedError
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.offline import PairTrainer
from dvpo_ray.runs.run import Event, Run
from dvpo_ray.runs.stopping import heeding
from tests.support.real import dpo_recipe

STEPS = 9


class FakeGang:
    """Ranks whose whole state is the list of pairs they learned from."""

    max_restarts = 2

    def __init__(self, lost: dict[int, int]) -> None:
        """``lost``: how often they are lost at a step before they get through it."""
        self.learned: list[int] = []
        self.lost = dict(lost)
        self.restarts = 0
        self._written: Path | None = None

    def learn(self, step: int, rows: np.ndarray) -> dict[str, float]:
        if self.lost.get(step, 0):
            self.lost[step] -= 1
            raise LearnerLostError("learner-0 died")
        self.learned += rows.tolist()
        return {"loss/dpo": float(sum(self.learned)), "loss/skipped_updates": float(step == 3)}

    def restart(self) -> None:
        self.restarts += 1
        self.learned = []

    def begin_checkpoint(self, folder: str) -> None:
        self._written = Path(folder) / "state.json"
        self._written.write_text(json.dumps(self.learned))

    def end_checkpoint(self) -> dict[str, str]:
        return {}

    def load_checkpoint(self, folder: str) -> None:
        self.learned = json.loads((Path(folder) / "state.json").read_text())


def run_of(tmp_path: Path, gang: FakeGang, every: int) -> tuple[list[Event], list[Any]]:
    """What a whole training says, and its recorded steps."""
    told: list[Event] = []
    recipe = dpo_recipe(tmp_path, tmp_path, tmp_path, "run")
    run = Run(recipe, STEPS, told.append)
    try:
        checkpointer = Checkpointer(CheckpointStore(run.folder / "checkpoints"), gang, run, every, STEPS)  # type: ignore[arg-type]
        batches = [np.array([2 * i, 2 * i + 1]) for i in range(STEPS)]
        PairTrainer([f"p{i}" for i in range(2 * STEPS)], batches, "sha", gang.learn, gang, run, checkpointer).train(None)  # type: ignore[arg-type]
    finally:
        run.close()
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return told, [(line["step"], line["loss/dpo"]) for line in lines]


@pytest.mark.parametrize("every", [0, 2], ids=["without checkpoints", "with checkpoints"])
@pytest.mark.parametrize("lost", [{5: 1}, {0: 2}, {8: 1, 3: 1}], ids=["once", "twice at the start", "twice"])
def test_ranks_that_die_are_started_again_and_every_pair_is_learned_from_once(
    tmp_path: Path, every: int, lost: dict[int, int]
) -> None:
    gang = FakeGang(lost)
    _, steps = run_of(tmp_path, gang, every)
    assert gang.learned == list(range(2 * STEPS))
    assert steps == [(step, float(sum(range(2 * step + 2)))) for step in range(STEPS)]
    assert gang.restarts == sum(lost.values())


def test_ranks_that_keep_dying_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(LearnerLostError, match="learner-0 died"):
        run_of(tmp_path, FakeGang({4: 3}), 2)


def test_an_update_that_was_withheld_is_told_with_its_pairs(tmp_path: Path) -> None:
    told, _ = run_of(tmp_path, FakeGang({}), 0)
    warnings = [event.text for event in told if event.kind == "warning"]
    assert warnings == ["step 4: an update of the model was not finite and was withheld; its rows: p6, p7"]


class AskedToStop(FakeGang):
    """Ctrl-C comes while a step is learned."""

    def learn(self, step: int, rows: np.ndarray) -> dict[str, float]:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return super().learn(step, rows)


def test_a_training_without_checkpoints_makes_one_when_it_is_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    gang = AskedToStop({})
    with (
        pytest.raises(RunStoppedError, match="stopped after step 4 of 9, as asked: --resume auto") as found,
        heeding(said.append),
    ):
        run_of(tmp_path, gang, 0)
    assert found.value.exit_code == 130 and gang.learned == list(range(8))
    assert said[0].startswith("stopping: step 4 of 9, which is in hand, will be finished and checkpointed (within ")
    assert said[0].endswith("stops at once, losing all 3 steps so far")
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000004\n"
