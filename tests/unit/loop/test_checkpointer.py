"""What follows a step, in trainings of a policy and on pairs: withheld updates, evaluations that fail, machines that go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.errors import NonFiniteUpdateError, RewardError, RunStoppedError
from dvpo_ray.loop.checkpointer import Checkpointer, LoopHooks
from dvpo_ray.loop.dumps import read_dump
from dvpo_ray.loop.offline import PairTrainer
from dvpo_ray.runs.run import Event, Run
from dvpo_ray.types import RowId, ScoredBatch, ScorerVersion, StepResult, outcomes
from tests.support.fakes import FakeStages, IdleStages, drive, scored_batch, shuffled
from tests.support.real import dpo_recipe

STEPS = 4


class Pairs(IdleStages):
    """Learns nothing from pairs."""

    max_restarts = 0

    def learn(self, step: int, rows: np.ndarray) -> dict[str, float]:
        return {"loss/dpo": 0.0, "loss/skipped_updates": 0.0}


def train_on_pairs(
    tmp_path: Path,
    draining: Callable[[], set[str]] = set,
    evaluate: Callable[[int], float | None] = lambda steps: None,
) -> tuple[CheckpointStore, list[str]]:
    """A training on pairs that checkpoints nothing unasked and evaluates every second step; its checkpoints and warnings."""
    told: list[Event] = []
    run = Run(dpo_recipe(tmp_path, tmp_path, tmp_path, "run"), STEPS, told.append)
    store, pairs = CheckpointStore(run.folder / "checkpoints"), Pairs()
    checkpointer = Checkpointer(store, pairs, run, 0, STEPS)
    batches = [np.array([step]) for step in range(STEPS)]
    names = [f"p{step}" for step in range(STEPS)]
    due: Callable[[int], bool] = lambda steps: steps % 2 == 0  # noqa: E731
    trainer = PairTrainer(names, batches, "sha", pairs.learn, pairs, run, checkpointer, draining, due, evaluate)
    try:
        trainer.train(None)
    finally:
        run.close()
        told_of = [event.text for event in told if event.kind == "warning"]
        (tmp_path / "told").write_text("\n".join(told_of))
    return store, told_of


def newest(tmp_path: Path) -> int | None:
    found = CheckpointStore(tmp_path / "run" / "checkpoints").newest()
    return None if found is None else found.step


def test_a_training_on_pairs_keeps_what_it_did_before_an_evaluation_failed(tmp_path: Path) -> None:
    def evaluate(steps: int) -> float | None:
        raise RewardError(f"evaluation.gold failed after step {steps}")

    with pytest.raises(RewardError, match="after step 2"):
        train_on_pairs(tmp_path, evaluate=evaluate)
    assert newest(tmp_path) == 2


def test_a_training_on_pairs_whose_driver_must_go_checkpoints_and_stops(tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError, match="stopped after step 1 of 4, as asked"):
        train_on_pairs(tmp_path, draining=lambda: {"driver"}, evaluate=lambda steps: pytest.fail("nobody waits for a score"))
    assert newest(tmp_path) == 1
    assert (tmp_path / "told").read_text() == "step 1: the machine of the driver will be taken away: checkpointing"


def test_a_training_on_pairs_checkpoints_every_step_while_its_learner_must_go(tmp_path: Path) -> None:
    store, told = train_on_pairs(tmp_path, draining=lambda: {"learner"})
    assert [path.name for path in sorted(store.folder.glob("step-*"))] == ["step-00000003", "step-00000004"]
    assert len(told) == STEPS


def test_what_the_loop_remembers_is_in_the_checkpoint_with_its_score(tmp_path: Path) -> None:
    run = Run(dpo_recipe(tmp_path, tmp_path, tmp_path, "run"), STEPS)
    checkpointer = Checkpointer(CheckpointStore(run.folder / "checkpoints"), IdleStages(), run, 2, STEPS)
    hooks = LoopHooks(state=lambda steps: {"mine": steps}, evaluates=lambda steps: True, evaluate=lambda steps: steps / 8)
    checkpointer.serve(hooks)
    for step in range(2):
        checkpointer.after_step(step, {}, lambda: pytest.fail("no update was withheld"))
    made = checkpointer.finish()
    run.close()
    assert made is not None and (made.step, made.state["mine"], made.score) == (2, 2, 0.25)
    assert made.state["number_types"] == run.number_types


class Withholds(FakeStages):
    """Whose learner withholds the update of its second step, or gives up at it."""

    def __init__(self, gives_up: bool) -> None:
        super().__init__()
        self._gives_up = gives_up

    def score(self, answers: Iterable[RowId], version: ScorerVersion | None = None) -> Iterator[ScoredBatch]:  # type: ignore[override]
        rows = list(answers)
        batch = scored_batch([3] * len(rows))
        yield ScoredBatch(**(vars(batch) | {"rows": tuple(rows)}))

    def wait(self, handles: Sequence[object]) -> None:
        """Everything is scored at once."""

    def step(self, step: int, beta: float, scored: Iterable[ScoredBatch]) -> StepResult:  # type: ignore[override]
        batch = ScoredBatch.concat(list(scored))
        if step == 1 and self._gives_up:
            raise NonFiniteUpdateError("4 updates in a row were not finite")
        return StepResult(step, step + 1, outcomes(batch), {"kl/per_answer": 1.0, "critic/skipped_updates": float(step == 1)})


@pytest.mark.parametrize("gives_up", [False, True], ids=["is withheld", "ends the run"])
def test_the_rows_of_an_update_that_is_not_finite_are_kept(tmp_path: Path, gives_up: bool) -> None:
    tree = {
        "run": {"output_dir": str(tmp_path), "name": "r"},
        "tracking": {"tensorboard": False},
        "policy": {"steps": 3, "value_model": "g", "data": {"source": "x"}, "rollout": {"prompts_per_step": 4}},
    }
    config = build(PolicyRecipe, tree)
    told: list[Event] = []
    run = Run(config, 3, told.append)
    prompts = [EncodedPrompt(f"p{i}", "", (1, i), f"p{i}") for i in range(6)]
    dump = tmp_path / "r" / "dumps" / "step-00000002.npz"
    try:
        if gives_up:
            with pytest.raises(NonFiniteUpdateError, match=f"in a row were not finite; the rows of the last: {dump}"):
                drive(config.policy, Withholds(gives_up), shuffled(prompts, config.policy), run)
        else:
            drive(config.policy, Withholds(gives_up), shuffled(prompts, config.policy), run)
            warnings = [event.text for event in told if event.kind == "warning"]
            assert warnings == [f"step 2: an update of the critic was not finite and was withheld; its rows: {dump}"]
    finally:
        run.close()
    rows, step, _ = read_dump(dump)
    assert step == 1 and len(rows) == 4 and {row.step for row in rows.rows} == {1}
    assert [path.name for path in dump.parent.iterdir()] == [dump.name]
