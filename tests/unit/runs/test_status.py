"""What a job writes of how it stands, however it ends."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from dvpo_ray.errors import CheckpointError, ConfigError, DataError, RunStoppedError
from dvpo_ray.runs.pace import Pace
from dvpo_ray.runs.status import STATUS, JobStatus, read_status, status_kept
from dvpo_ray.runs.stopping import Stop, heeding


def written(folder: Path) -> JobStatus:
    found = read_status(folder)
    assert found is not None
    return found


def test_a_job_that_comes_to_its_end_has_run_and_then_finished(tmp_path: Path) -> None:
    began, pace = time.time(), Pace(9)
    assert read_status(tmp_path) is None
    with status_kept(tmp_path, Stop(), pace):
        running = written(tmp_path)
        pace.step_done(9, 1.0)
        pace.checkpoint_done(8, 1.0)
    assert (running.state, running.exit_code, running.steps, running.total_steps) == ("running", None, 0, 9)
    finished = written(tmp_path)
    assert (finished.state, finished.exit_code, finished.steps, finished.checkpointed) == ("finished", 0, 9, 8)
    assert began <= running.began == finished.began
    assert [path.name for path in tmp_path.iterdir()] == [STATUS], "nothing half written is left"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("wrong"), 2, "wrong"),
        (CheckpointError("full"), 1, "full"),
        (ZeroDivisionError(), 1, "ZeroDivisionError()"),
    ],
)
def test_a_job_that_fails_says_with_what(tmp_path: Path, error: Exception, code: int, message: str) -> None:
    with pytest.raises(type(error)), status_kept(tmp_path, Stop()):
        raise error
    found = written(tmp_path)
    assert (found.state, found.exit_code, found.message, found.steps) == ("failed", code, message, None)


def test_a_job_that_was_asked_to_stop_has_stopped_with_the_code_of_the_signal(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        pytest.raises(RunStoppedError) as caught,
        heeding(said.append) as stop,
        status_kept(tmp_path, stop),
        stop.finishing(lambda: "finishing"),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RunStoppedError.as_asked("after step 3 of 9")
    found = written(tmp_path)
    assert (found.state, found.exit_code) == ("stopped", 143) and caught.value.exit_code == 143
    assert found.message == str(caught.value) == "stopped after step 3 of 9, as asked: --resume auto goes on"


def test_what_is_given_up_names_the_checkpoint_that_was_there_then(tmp_path: Path) -> None:
    """Who knows of it has left by the time that the job's end is reached."""
    said: list[str] = []
    with pytest.raises(RunStoppedError, match="stopped with the checkpoint of step 4, as asked"), heeding(said.append) as stop:
        stop.kept = lambda: "the checkpoint of step 4"
        try:
            with status_kept(tmp_path, stop):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(20)
                pytest.fail("the block went on")
        finally:
            stop.kept = str
    found = written(tmp_path)
    assert (found.state, found.exit_code) == ("stopped", 130)
    assert found.message.startswith("stopped with the checkpoint of step 4")


def test_a_job_that_ends_at_once_says_so_first(tmp_path: Path) -> None:
    stop = Stop()
    with status_kept(tmp_path, stop):
        stop.signum = signal.SIGINT
        stop._do_last_deeds()
        found = written(tmp_path)
    assert (found.state, found.exit_code, found.message) == ("stopped", 130, "stopped at once")


def test_a_disk_that_is_full_does_not_hide_what_the_work_ended_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="no space"), status_kept(folder, Stop()):
        (folder / STATUS).unlink()
        folder.rmdir()
        raise CheckpointError("no space")
    assert "status.json could not be written" in caplog.text


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / STATUS).write_text(json.dumps({"state": "asleep", "began": 1.0}))
    with pytest.raises(DataError, match=r"status\.json: state: Input should be 'running'.*copy the file again"):
        read_status(tmp_path)
