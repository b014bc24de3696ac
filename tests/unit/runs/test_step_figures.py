"""What a run's records say of its steps, and going on with what a checkpoint was made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.errors import DataError
from dvpo_ray.runs.folder import METRICS, recorded_steps, step_seconds
from jobs.resume import check_same_data


def test_the_first_step_is_no_measure_of_the_others(tmp_path: Path) -> None:
    lines = [{"step": 0, "eval/seconds": 9.0}, *({"step": i, "seconds/step": s} for i, s in enumerate((50.0, 3.0, 1.0, 2.0)))]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    steps = recorded_steps(tmp_path)
    assert len(steps) == 4
    assert step_seconds(steps) == {"seconds_per_step": 2.0}
    assert step_seconds(steps[:1]) == {"seconds_per_step": 50.0}


def test_a_run_that_began_at_a_last_checkpoint_has_no_steps_and_no_time_of_them(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 4, "eval/seconds": 9.0}\n')
    assert step_seconds(recorded_steps(tmp_path)) == {}


def test_other_pairs_than_those_of_the_checkpoint_are_refused(tmp_path: Path) -> None:
    check_same_data(None, "a" * 64)
    check_same_data(Checkpoint(tmp_path, 4, {"data_sha256": "a" * 64}), "a" * 64)
    check_same_data(Checkpoint(tmp_path, 4, {}), "a" * 64)
    with pytest.raises(DataError, match=r"sha256 b{16}\.\.\., then a{16}\.\.\.\): bring those back"):
        check_same_data(Checkpoint(tmp_path, 4, {"data_sha256": "a" * 64}), "b" * 64)
