"""The sample of rows that a run keeps of each step."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dvpo_ray
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.errors import DataError
from dvpo_ray.loop import trajectory_log
from dvpo_ray.loop.trajectory_log import MIB, TrajectoryLog, choose_groups, token_texts
from dvpo_ray.runs.folder import kept_trajectories, rewind, trajectory_file
from dvpo_ray.runs.run import Event, Run
from dvpo_ray.testing.fakes import IdleStages, scored_batch
from dvpo_ray.testing.rewards import CharacterTokenizer
from dvpo_ray.types import Ragged, RowId, ScoredBatch, StepResult, outcomes

STEPS = 4


class Rows(IdleStages):
    """Scored rows that are fetched as they are; counts how often."""

    def __init__(self) -> None:
        self.fetched = 0

    def fetch(self, handles: Iterable[ScoredBatch]) -> list[ScoredBatch]:
        self.fetched += 1
        return list(handles)


def recipe(tmp_path: Path, mib: int) -> PolicyRecipe:
    run = {"output_dir": str(tmp_path), "name": "r", "keep_trajectories_mib": mib, "seed": 4}
    policy = {"value_model": "g", "data": {"source": "x"}, "steps": STEPS}
    return build(PolicyRecipe, {"run": run, "tracking": {"tensorboard": False}, "policy": policy})


def batch(step: int, groups: int = 4, tokens: int = 5) -> ScoredBatch:
    """Two answers to each prompt, with a reward of the answer and one of its tokens."""
    found = scored_batch([tokens] * (2 * groups), seed=step)
    rows = tuple(RowId(step, i // 2, f"p{i // 2}", i % 2) for i in range(2 * groups))
    channels = {
        "whole": Ragged.of([[float(i)] if i else [] for i in range(2 * groups)], np.float32),
        "each": Ragged.of([np.arange(tokens) for _ in rows], np.float32),
    }
    given = vars(found) | {"rows": rows, "group_ids": np.arange(2 * groups) // 2, "channels": channels}
    return ScoredBatch(**given)


def logged(
    tmp_path: Path, mib: int = 64, steps: range = range(STEPS), in_place: bool = False, **rows: Any
) -> tuple[Rows, list[str], Path]:
    """A run whose steps were trained on such batches; its warnings, and its folder."""
    config, warnings, scorers = recipe(tmp_path, mib), list[str](), Rows()

    def listen(event: Event) -> None:
        if event.kind == "warning":
            warnings.append(event.text)

    run = Run(config, STEPS, listen, in_place=in_place)
    log = TrajectoryLog(run, scorers, CharacterTokenizer(), config.run, STEPS)
    for step in steps:
        scored = batch(step, **rows)
        half = [scored.take(range(0, len(scored), 2)), scored.take(range(1, len(scored), 2))]
        told = (*outcomes(half[0]), *outcomes(half[1], dropped=True))
        log.keep(half, StepResult(step, step + 1, told))
        log.wait()
    log.close()
    run.close()
    return scorers, warnings, run.folder


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    _, warnings, folder = logged(tmp_path)
    run = dvpo_ray.read_run(folder)
    assert warnings == [] and run.trajectory_steps == [0, 1, 2, 3]
    sample, scored = run.trajectory_sample(2), batch(2).in_order()
    assert (sample.step, sample.of_rows) == (2, 8) and len(run.trajectories(2)) == len(sample.rows) == 8
    assert [row.row for row in sample.rows] == list(scored.rows), "all fit"
    for i, row in enumerate(sample.rows):
        assert row.group_id == scored.group_ids[i] and row.end_state == "stop" and row.weights_version == 3
        assert row.dropped == (row.row.answer == 1)
        for name in trajectory_log.ARRAYS:
            np.testing.assert_array_equal(getattr(row, name), getattr(scored, name).rows()[i], err_msg=name)
        assert row.answer == "".join(map(chr, row.response_ids)) and len(row.token_texts) == 5
        assert row.prompt == "".join(map(chr, row.prompt_ids))
        assert {name: list(numbers) for name, numbers in row.rewards.items()} == {
            name: list(channel.rows()[i]) for name, channel in scored.channels.items()
        }
    assert len(run.trajectories()) == 32 and run.trajectories(9) == []


def test_nothing_is_fetched_when_nothing_is_kept(tmp_path: Path) -> None:
    scorers, _, folder = logged(tmp_path, mib=0)
    assert scorers.fetched == 0 and not (folder / "trajectories").exists()
    assert dvpo_ray.read_run(folder).trajectories() == []


def test_whole_groups_are_kept_within_the_budget_spread_over_steps(tmp_path: Path) -> None:
    _, _, folder = logged(tmp_path, mib=1, groups=40, tokens=400)
    spent = 0
    for step, file in kept_trajectories(folder).items():
        spent += file.stat().st_size
        assert spent <= MIB * (step + 1) / STEPS
        sample = dvpo_ray.read_run(folder).trajectory_sample(step)
        groups = [row.group_id for row in sample.rows]
        assert 0 < len(groups) < sample.of_rows == 80 and all(groups.count(group) == 2 for group in groups)
    assert spent > 0


def test_the_choice_is_that_of_the_seed() -> None:
    scored = batch(0, groups=20)
    one, again, other = (choose_groups(scored, 3000, (seed, 0)) for seed in (1, 1, 2))
    assert one == again != other and len(one) == len(other) > 0
    assert choose_groups(scored, 10, (1, 0)) == [] and choose_groups(scored, -5, (1, 0)) == []
    assert choose_groups(scored, 10**9, (1, 0)) == list(range(40))


def test_a_run_that_goes_on_has_each_step_once(tmp_path: Path) -> None:
    _, _, straight = logged(tmp_path / "straight")
    _, _, folder = logged(tmp_path / "cut", steps=range(3))
    trajectory_file(folder, 3).with_suffix(".writing").write_bytes(b"half")
    rewind(folder, 2)
    assert list(kept_trajectories(folder)) == [0, 1] and not list((folder / "trajectories").glob("*.writing"))
    logged(tmp_path / "cut", steps=range(2, STEPS), in_place=True)
    for step in range(STEPS):
        rows = [dvpo_ray.read_run(one).trajectories(step) for one in (straight, folder)]
        assert [row.row for row in rows[0]] == [row.row for row in rows[1]]


def test_a_full_disk_is_told_of_once_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trajectory_log, "write_sample", full)
    _, warnings, folder = logged(tmp_path)
    assert len(warnings) == 1 and "step 1: its trajectories were not kept (OSError: [Errno 28] No space left" in warnings[0]
    assert kept_trajectories(folder) == {}


def test_steps_that_come_too_fast_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory_log.threading.Thread, "start", lambda self: None)
    warnings: list[str] = []
    config = recipe(tmp_path, 1)
    run = Run(config, STEPS, lambda event: warnings.append(event.text))
    log = TrajectoryLog(run, Rows(), CharacterTokenizer(), config.run, STEPS)
    for step in range(trajectory_log.WAITING + 2):
        log.keep([], StepResult(step, step + 1, ()))
    run.close()
    assert log.not_kept == 2 and [text for text in warnings if "4 steps before it are still being written" in text] == warnings


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    _, _, folder = logged(tmp_path, steps=range(1))
    file = trajectory_file(folder, 0)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"step-00000000\.parquet' is no file of trajectories"):
        dvpo_ray.read_run(folder).trajectories(0)


class Pieces:
    """Tokens that are bytes: a character may need several."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


def test_the_last_token_of_a_character_has_it() -> None:
    text = "aé😀b"
    assert token_texts(Pieces(), list(text.encode())) == ["a", "", "é", "", "", "", "😀", "b"]
    assert "".join(token_texts(Pieces(), list(text.encode())[:-2])).startswith("aé")
