"""Failures at any moment: what is trained in the end is what would have been trained without them, in the same order."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from actors.rollout.pool import read_traces
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.errors import (
    CheckpointError,
    ConfigError,
    LearnerLostError,
    PermanentFailureError,
    RewardError,
    RunError,
    RunStoppedError,
)
from dvpo_ray.loop.ledger import Ledger
from dvpo_ray.runs.folder import CHECKPOINTS, DEAD_LETTERS, check_same_run, locked, run_folder
from dvpo_ray.runs.run import Event, Run
from dvpo_ray.runs.stopping import heeding
from dvpo_ray.stages import Weights
from dvpo_ray.types import EngineLeftovers, RolloutRequest, RowId, ServedWeights, StepResult
from tests.support.fakes import FakeStages, drive, numbered, shuffled, trained

STEPS = 9


class DriverKilled(BaseException):
    """Stands for the end of the driver's process."""


class ChainStages(FakeStages):
    """A learner whose state is a digest of all it trained, in order; ``plan`` says what fails at which call of the learner."""

    def __init__(self, plan: Iterable[str] = ()) -> None:
        super().__init__(value_hashes=("sealed",) * 100)
        self.chain = ""
        self.machines_leaving: set[str] = set()
        self._writing: tuple[Path, str] | None = None
        self._plan = iter(plan)

    def _fail(self, where: str) -> None:
        event = next(self._plan, "")
        if event == "learner":
            raise LearnerLostError(f"learner lost {where}")
        if event == "preempted":
            raise LearnerLostError(f"learner's machine taken away {where}", preempted=True)
        if event == "driver":
            raise DriverKilled

    def step(self, step: int, beta: float, scored: Iterable[list[RowId]]) -> StepResult:
        rows = sorted(row for batch in scored for row in batch)
        self._fail("before a step")
        self.chain = hashlib.sha256(f"{self.chain}{step}{rows}".encode()).hexdigest()
        self._fail("after a step")
        return StepResult(step, step + 1, trained(rows), {"kl/per_answer": 1.0, "chain": float(int(self.chain[:6], 16))})

    def sync(self, weights: Weights) -> ServedWeights:
        self._fail("while syncing")
        return super().sync(weights)

    def begin_checkpoint(self, folder: str) -> None:
        self._fail("beginning a checkpoint")
        self._writing = Path(folder), self.chain

    def end_checkpoint(self) -> dict[str, str]:
        assert self._writing is not None
        folder, chain = self._writing
        self._fail("ending a checkpoint")
        (folder / "chain").write_text(chain)
        return {"chain": hashlib.sha256(chain.encode()).hexdigest()}

    def draining(self) -> set[str]:
        return self.machines_leaving

    def load_checkpoint(self, folder: str) -> None:
        self.chain = (Path(folder) / "chain").read_text()

    def restart(self) -> None:
        self.chain, self._writing = "", None


def recipe(tmp_path: Path, every: int, name: str = "r", **policy: object) -> PolicyRecipe:
    tree = {
        "run": {"output_dir": str(tmp_path), "name": name, "resume": "auto", "overwrite": True},
        "tracking": {"tensorboard": False},
        "policy": {
            "steps": STEPS,
            "value_model": "g",
            "data": {"source": "x"},
            "rollout": {"prompts_per_step": 4},
            "checkpoint": {"every": every},
            "learner": {"max_restarts": 100},
        }
        | policy,
    }
    return build(PolicyRecipe, tree)


def run_once(
    config: PolicyRecipe, stages: ChainStages, stop_after: int = 0, evaluate: Callable[[int], float | None] = lambda step: None
) -> Ledger:
    """One life of a driver: from the newest checkpoint there is, as ``jobs.train_policy`` does it."""
    checkpoint = CheckpointStore(run_folder(config) / CHECKPOINTS).newest()

    def listen(event: Event) -> None:
        if stop_after and event.step == stop_after:
            run.stopping = True

    run = Run(config, STEPS, listen, in_place=checkpoint is not None)
    try:
        return drive(config.policy, stages, shuffled(numbered(6), config.policy), run, checkpoint, evaluate)
    finally:
        run.close()


def steps_and_chain(config: PolicyRecipe) -> list[tuple[int, float]]:
    lines = (run_folder(config) / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["chain"]) for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[int, float]]]:
    config, stages = recipe(tmp_path_factory.mktemp("straight"), every=0), ChainStages()
    run_once(config, stages)
    return stages.chain, steps_and_chain(config)


def test_who_goes_on_with_a_run_reads_its_bad_rows_anew(tmp_path: Path) -> None:
    config = recipe(tmp_path, 2)
    run_once(config, ChainStages())
    letters = run_folder(config) / DEAD_LETTERS
    letters.write_text("{}\n")
    Run(config, STEPS, in_place=True).close()
    assert not letters.exists()


def test_a_learner_that_keeps_dying_ends_the_run(tmp_path: Path) -> None:
    config = recipe(tmp_path, 2, learner={"max_restarts": 2})
    with pytest.raises(LearnerLostError, match="learner lost"):
        run_once(config, ChainStages(["learner"] * 50))


class RowsFail(ChainStages):
    """Whose engines refuse the rows of the fifth step."""

    asked = 0

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[str]:
        self.asked += 1
        if self.asked == 5:
            raise PermanentFailureError("row 7: rollout-0 refuses it")
        return super().generate(requests)


@pytest.mark.parametrize("lead", [0, 2])
def test_what_was_trained_before_rows_were_refused_is_checkpointed(
    straight: tuple[str, list[tuple[int, float]]], tmp_path: Path, lead: int
) -> None:
    config = recipe(tmp_path, every=0, off_policy={"max_staleness": lead})
    stages = RowsFail()
    with pytest.raises(PermanentFailureError, match="refuses it"):
        run_once(config, stages)
    assert stages.asked >= 5
    checkpoint = CheckpointStore(run_folder(config) / CHECKPOINTS).newest()
    assert checkpoint is not None and checkpoint.step == len(steps_and_chain(config)) == 4
    again = ChainStages()
    run_once(config, again)
    assert (again.chain, steps_and_chain(config)) == straight


def test_what_was_trained_before_an_evaluation_failed_is_checkpointed(tmp_path: Path) -> None:
    config = recipe(tmp_path, every=0, evaluation={"source": "y", "every": 3})

    def evaluate(step: int) -> float | None:
        raise RewardError(f"evaluation.gold failed after step {step}")

    with pytest.raises(RewardError, match="after step 3"):
        run_once(config, ChainStages(), evaluate=evaluate)
    checkpoint = CheckpointStore(run_folder(config) / CHECKPOINTS).newest()
    assert checkpoint is not None and checkpoint.step == 3


def test_what_could_not_be_checkpointed_then_is_a_warning_and_the_failure_stays(tmp_path: Path) -> None:
    config = recipe(tmp_path, every=0)
    stages = RowsFail([*[""] * 12, "learner"])
    with pytest.raises(PermanentFailureError, match="refuses it"):
        run_once(config, stages)
    assert CheckpointStore(run_folder(config) / CHECKPOINTS).newest() is None


def test_a_machine_that_is_taken_away_is_no_fault(straight: tuple[str, list[tuple[int, float]]], tmp_path: Path) -> None:
    config = recipe(tmp_path, 2, learner={"max_restarts": 0})
    stages = ChainStages([*[""] * 9, "preempted"] * 3)
    run_once(config, stages)
    assert (stages.chain, steps_and_chain(config)) == straight


def test_every_step_is_checkpointed_when_the_learners_machine_is_about_to_go(tmp_path: Path) -> None:
    config, stages = recipe(tmp_path, every=0), ChainStages([*[""] * 16, "driver"])
    stages.machines_leaving = {"learner"}
    with pytest.raises(DriverKilled):
        run_once(config, stages)
    checkpoint = CheckpointStore(run_folder(config) / CHECKPOINTS).newest()
    assert checkpoint is not None and checkpoint.step == len(steps_and_chain(config)) == 3


def test_a_driver_whose_machine_is_about_to_go_checkpoints_and_stops(
    straight: tuple[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    config, stages = recipe(tmp_path, every=0), ChainStages()
    stages.machines_leaving = {"driver"}
    with pytest.raises(RunStoppedError, match="stopped after step 1 of 9"):
        run_once(config, stages)
    again = ChainStages()
    run_once(config, again)
    assert again.chain == straight[0]


def test_a_run_asked_to_stop_checkpoints_and_goes_on_later(straight: tuple[str, list[tuple[int, float]]], tmp_path: Path) -> None:
    config = recipe(tmp_path, every=0)
    with pytest.raises(RunStoppedError, match="stopped after step 4 of 9"):
        run_once(config, ChainStages(), stop_after=4)
    stages = ChainStages()
    run_once(config, stages)
    assert stages.chain == straight[0]


def test_who_asks_a_run_to_stop_waits_for_no_score(tmp_path: Path) -> None:
    config = recipe(tmp_path, every=2, evaluation={"source": "held-out", "every": 2})
    evaluated: list[int] = []

    def evaluate(step: int) -> float:
        evaluated.append(step)
        return 0.5

    with pytest.raises(RunStoppedError, match="stopped after step 4 of 9, as asked: --resume auto goes on"):
        run_once(config, ChainStages(), stop_after=4, evaluate=evaluate)
    checkpoint = CheckpointStore(run_folder(config) / CHECKPOINTS).newest()
    assert checkpoint is not None and (checkpoint.step, checkpoint.score) == (4, None)
    assert evaluated == [2]


def test_an_evaluation_is_given_up_for_the_checkpoint_of_its_step(
    straight: tuple[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    config = recipe(tmp_path, every=0, evaluation={"source": "held-out", "every": 2})
    said: list[str] = []

    def evaluate(step: int) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(20)
        pytest.fail("the evaluation went on")

    with pytest.raises(RunStoppedError, match="stopped after step 2 of 9, as asked") as found, heeding(said.append):
        run_once(config, ChainStages(), evaluate=evaluate)
    assert found.value.exit_code == 143
    assert said[0].startswith("stopping: the evaluation is given up, step 2 is kept as a checkpoint (within ")
    checkpoint = CheckpointStore(run_folder(config) / CHECKPOINTS).newest()
    assert checkpoint is not None and (checkpoint.step, checkpoint.score) == (2, None)
    stages = ChainStages()
    run_once(config, stages)
    assert stages.chain == straight[0]


def test_a_run_asked_to_stop_in_its_last_step_stops_after_it(
    straight: tuple[str, list[tuple[int, float]]], tmp_path: Path
) -> None:
    config = recipe(tmp_path, every=0)
    with pytest.raises(RunStoppedError, match="stopped after step 9 of 9"):
        run_once(config, ChainStages(), stop_after=STEPS)
    stages = ChainStages()
    run_once(config, stages)
    assert stages.chain == straight[0] and "generate" not in stages.calls


def test_a_run_asked_to_stop_before_its_first_step_checkpoints_nothing(tmp_path: Path) -> None:
    config = recipe(tmp_path, every=0)
    with heeding(lambda text: None) as stop, stop.ending():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(RunStoppedError, match="stopped; nothing of it is kept"):
            run_once(config, ChainStages())
    assert CheckpointStore(run_folder(config) / CHECKPOINTS).newest() is None


def test_a_checkpoint_of_another_value_model_is_refused(tmp_path: Path) -> None:
    config = recipe(tmp_path, every=3)
    with pytest.raises(DriverKilled):
        run_once(config, ChainStages([""] * 15 + ["driver"]))
    other = ChainStages()
    other._hashes = iter(["other"] * 9)
    with pytest.raises(CheckpointError, match="under another value model or other reward models"):
        run_once(config, other)


def test_only_settings_that_may_change_can_change(tmp_path: Path) -> None:
    run_once(recipe(tmp_path, every=3), ChainStages())
    saved = tmp_path / "r" / "config.json"
    check_same_run(recipe(tmp_path, every=5, learner={"ranks": 2}), saved)
    with pytest.raises(ConfigError, match="policy.rollout.prompts_per_step was 4, this recipe says 8"):
        check_same_run(recipe(tmp_path, every=3, rollout={"prompts_per_step": 8}), saved)
    with pytest.raises(ConfigError, match="policy.ptx.data was None, this recipe says {'source': 'x'"):
        check_same_run(recipe(tmp_path, every=3, ptx={"data": {"source": "x"}}), saved)
    earlier = json.loads(saved.read_text())
    for name in ("subset", "data_dir", "revision"):  # which earlier versions did not have
        del earlier["policy"]["data"][name]
    saved.write_text(json.dumps(earlier))
    check_same_run(recipe(tmp_path, every=3), saved)


def test_a_list_of_engines_that_was_cut_short_does_not_stop_the_next_driver(tmp_path: Path) -> None:
    (tmp_path / "engines.json").write_text('[{"processes": [[12')
    assert read_traces(tmp_path / "engines.json") == EngineLeftovers()


def test_two_drivers_cannot_hold_one_run(tmp_path: Path) -> None:
    with locked(tmp_path / "r"), pytest.raises(RunError, match="in use by another driver"), locked(tmp_path / "r"):
        pass
    with locked(tmp_path / "r"):
        pass
    assert not list(tmp_path.glob(".*"))
