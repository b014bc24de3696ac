"""What all jobs begin and end with, around a training that does nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.config import DpoRecipe
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.errors import DataError, RunError
from dvpo_ray.runs.run import Event
from dvpo_ray.runs.status import read_status
from dvpo_ray.stages import Checkpointing
from jobs.session import Session, running_actors, session
from tests.support.fakes import IdleStages
from tests.support.real import dpo_recipe

ROWS = [EncodedPrompt(f"p{i}", f"p{i}", (1, i), f"p{i}") for i in range(4)]


def recipe(model: Path, folder: Path, resume: str = "auto") -> DpoRecipe:
    made = dpo_recipe(model, folder / "pairs.jsonl", folder, "run", checkpoint={"every": 2})
    return made.model_copy(update={"run": made.run.model_copy(update={"resume": resume})})


@contextmanager
def begun(recipe: DpoRecipe, told: list[Event]) -> Iterator[Session[DpoRecipe]]:
    with session(recipe, recipe.dpo.checkpoint, told.append) as s:
        yield s


def trained(s: Session[DpoRecipe], steps: int, learner: Checkpointing | None = None) -> Checkpoint | None:
    """Checkpoint so many steps of training on the rows."""
    s.check_data(ROWS, 6)
    checkpointer = s.checkpointer(learner or IdleStages())
    with s.training():
        for step in range(steps):
            s.run.log(step, {"seconds/step": 1.0})
        checkpointer.keep(steps)
    return s.store.newest()


def test_a_session_ends_with_a_result_and_goes_on_where_it_was(tiny_model: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    with begun(recipe(tiny_model, tmp_path), told) as s:
        assert s.checkpoint is None and not s.run.in_place
        assert read_status(s.run.folder).state == "running"  # type: ignore[union-attr]
        trained(s, 4)
        result = s.result({"policy": "somewhere"})
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["policy"] == "somewhere" and result["peak_memory_gb"] > 0 and result["number_types"]
    status = read_status(tmp_path / "run")
    assert status is not None and (status.state, status.steps, status.total_steps, status.checkpointed) == ("finished", 4, 6, 4)
    with begun(recipe(tiny_model, tmp_path), told) as s:
        assert s.checkpoint is not None and s.checkpoint.step == 4 and s.run.in_place


def test_rows_that_are_refused_take_nothing_back(tiny_model: Path, tmp_path: Path) -> None:
    with begun(recipe(tiny_model, tmp_path), []) as s:
        s.check_data(ROWS, 6)
        s.run.log(0, {"seconds/step": 1.0})
        checkpointer = s.checkpointer(IdleStages())
        checkpointer.begin(1)
        state = checkpointer.finish()
        assert state is not None
        s.run.log(1, {"seconds/step": 1.0})
    manifest = next((tmp_path / "run" / "checkpoints").glob("step-*/*.json"))
    assert '"data_sha256"' not in manifest.read_text(), "the loop adds it"
    with (
        pytest.raises(DataError, match="not those with which checkpoint"),
        begun(recipe(tiny_model, tmp_path), []) as s,
    ):
        assert s.checkpoint is not None
        s.checkpoint.state["data_sha256"] = "of other rows"
        s.check_data(ROWS, 6)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert read_status(tmp_path / "run").state == "failed"  # type: ignore[union-attr]
    with begun(recipe(tiny_model, tmp_path), []) as s:
        s.check_data(ROWS, 6)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_is_held_by_one_session(tiny_model: Path, tmp_path: Path) -> None:
    with (
        begun(recipe(tiny_model, tmp_path), []),
        pytest.raises(RunError, match="in use by another driver"),
        begun(recipe(tiny_model, tmp_path), []),
    ):
        pass
    assert read_status(tmp_path / "run").state == "finished", "who was refused wrote nothing"  # type: ignore[union-attr]


def test_actors_end_however_the_block_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: Path) -> None:
    @contextmanager
    def no_ray(cluster: object) -> Iterator[None]:
        yield

    class Pool:
        stopped = 0

        def stop(self) -> None:
            self.stopped += 1

    monkeypatch.setattr("jobs.session.ray_session", no_ray)
    monkeypatch.setattr("jobs.session.keep_logs", lambda folder: f"in {folder}")
    pools = [Pool(), Pool()]
    made = recipe(tiny_model, tmp_path)
    with (
        begun(made, []) as s,
        pytest.raises(RunError, match=r"(?s)it failed.*logs: in .*run/logs"),
        running_actors(made.cluster, s.run.folder / "logs", s.run.stop) as started,
    ):
        started += pools
        raise RunError("it failed")
    assert [pool.stopped for pool in pools] == [1, 1]
