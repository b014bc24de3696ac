"""A disk without room: one sentence, nothing half written, and everything goes on once there is room."""

from __future__ import annotations

import errno
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.data.dead_letters import DeadLetters
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.reasons import Reason
from dvpo_ray.errors import DiskFullError
from dvpo_ray.io import disk
from dvpo_ray.io.disk import LineFile, write_text, writing
from dvpo_ray.io.json_files import read_records
from dvpo_ray.io.remedies import remedy
from dvpo_ray.io.safetensors_writer import write_tensors
from dvpo_ray.judging.verdict_file import Judgement, VerdictFile
from dvpo_ray.loop.dumps import write_dump
from dvpo_ray.models.folder import written_atomically
from dvpo_ray.runs.folder import rewind
from dvpo_ray.runs.run import Run, failures
from jobs.cli.main import app
from tests.support.fakes import scored_batch

SENTENCE = (
    r"^no room to write '[^']+' \(.*\): make room there, or name another place, and give the same command again; a run goes on"
)


def fill(folder: Path) -> Path:
    """Take all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(b"x" * 4096)
    return ballast


def of_model(folder: Path) -> None:
    with written_atomically(folder / "model") as unfinished:
        (unfinished / "config.json").write_text("x" * 9000)


def of_verdict(folder: Path) -> None:
    key = {"key": "k", "question": "q" * 9000, "verdict": "A", "reply": "r", "finish_reason": "stop"}
    with VerdictFile(folder / "verdicts") as file:
        file.add(Judgement(**key, input_tokens=1, output_tokens=1, max_tokens=1))


def of_letter(folder: Path) -> None:
    with DeadLetters(folder / "dead.jsonl") as letters:
        for number in range(99):
            letters.add(RawRow("f", number, {"a": "b" * 300}), None, Reason.TIE, "x" * 300)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_text(folder / "report.html", "x" * 9000),
    "tensors": lambda folder: write_tensors(folder / "w.safetensors", {"w": torch.zeros(9000)}, {}),
    "dump": lambda folder: write_dump(folder / "dumps" / "step.npz", scored_batch([3, 900]), 1, 0.1),
    "model": of_model,
    "verdict": of_verdict,
    "letter": of_letter,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_writer_says_one_sentence_and_works_once_there_is_room(kind: str, small_disk: Path) -> None:
    ballast = fill(small_disk)
    before = {path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size}
    with pytest.raises((DiskFullError, OSError)) as found:
        WRITERS[kind](small_disk)
    error = found.value if isinstance(found.value, DiskFullError) else disk.full(Path(str(found.value.filename)))  # type: ignore[union-attr]
    assert pytest.approx(0) == float(str(error).partition("(")[2].split(" GB")[0]) and str(small_disk) in str(error)
    assert {path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size} == before
    ballast.unlink()
    WRITERS[kind](small_disk)


def test_a_run_whose_disk_was_full_goes_on_from_whole_records(small_disk: Path) -> None:
    tree = {"run": {"output_dir": str(small_disk)}, "tracking": {"tensorboard": False}}
    recipe = build(PolicyRecipe, tree | {"policy": {"value_model": "v", "data": {"source": "x.jsonl"}}})
    run = Run(recipe, 300)
    run.log(0, {"seconds/step": 1.0})
    ballast = fill(small_disk)
    with pytest.raises(DiskFullError, match=SENTENCE):
        for step in range(1, 300):
            run.log(step, {"seconds/step": 1.0} | {f"metric/{i}": 1.0 for i in range(20)})
    with pytest.raises(DiskFullError, match=r"timeline\.json"):
        run.close()
    rows = read_records(run.folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows))) and rows, "no line is cut short"
    ballast.unlink()
    rewind(run.folder, 1)
    again = Run(recipe, 300, in_place=True)
    again.log(1, {"seconds/step": 1.0})
    again.close()
    assert [row["step"] for row in read_records(run.folder / "metrics.jsonl")] == [0, 1]


class FullAfter:
    """A file that takes so many bytes."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(self.room, len(data), 3)
        self.room -= taken
        return int(self.file.write(data[:taken]))  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    with LineFile(tmp_path / "lines") as file:
        file.add("one", "two")
        file._file = FullAfter(file._file, 4)  # type: ignore[assignment]
        with pytest.raises(DiskFullError, match=SENTENCE):
            file.add("a line that is longer")
        file._file.room = 99  # type: ignore[attr-defined]
        file.add("three")
    assert (tmp_path / "lines").read_text() == "one\ntwo\nthree\n"


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "result.json", "before")

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFullError, match=SENTENCE):
        write_text(tmp_path / "result.json", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"] and (tmp_path / "result.json").read_text() == "before"


@pytest.mark.parametrize(
    ("error", "room"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), True),
        (PermissionError(errno.EACCES, "x"), False),
        (ValueError("x"), False),
    ],
)
def test_only_want_of_room_is_told_as_such(error: Exception, room: bool, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError if room else type(error)), writing(tmp_path / "a" / "b"):
        raise error


def test_the_error_crosses_processes_and_engines_errors_have_the_remedy(tmp_path: Path) -> None:
    error = disk.full(tmp_path / "a")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert "make room" in remedy("OSError: [Errno 28] No space left on device")


def test_logs_that_cannot_be_kept_do_not_hide_why_a_run_failed(tmp_path: Path) -> None:
    def full(folder: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError, match="(?s)no room to write.*logs: could not be kept in"), failures(tmp_path, full):
        raise disk.full(tmp_path)


def test_a_command_that_meets_a_full_disk_ends_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "recipe.toml"))

    monkeypatch.setattr(os, "mkdir", full)
    words = ["init", "--model", "m", "--pairs", "p.jsonl", "--devices", "cpu:2:16", "--json", "--output"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "new" / "recipe.toml")])
    assert done.exit_code == 1 and json.loads(done.output)["error"] == "DiskFullError"


def test_a_model_folder_is_as_open_as_the_umask_lets_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with written_atomically(tmp_path / "model") as unfinished:
            (unfinished / "config.json").write_text("{}")
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
