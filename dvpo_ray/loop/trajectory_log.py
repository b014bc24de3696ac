"""Keeps a sample of the rows that each step was trained on, in a thread beside the training."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from dvpo_ray.config.sections import RunSection
from dvpo_ray.runs.folder import kept_trajectories, trajectory_file
from dvpo_ray.runs.run import Run
from dvpo_ray.runs.trajectories import ARRAYS, KeptTrajectory, StepSample, write_sample
from dvpo_ray.stages import Handle, Scorers
from dvpo_ray.types import ScoredBatch, StepResult

MIB = 2**20
# Of an empty file: schema and statistics of its columns.
FILE_BYTES = 16384
# Of a row beside its tokens, and of each token: ids, texts, masks, log-probs, values, versions.
ROW_BYTES, TOKEN_BYTES, PROMPT_TOKEN_BYTES = 256, 40, 12
# Steps whose rows may wait to be written.
WAITING = 4
# Longest wait for them at the end of a run, in seconds.
END_S = 30.0


class Tokenizer(Protocol):
    """What tokens are told in words by."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of tokens."""
        ...


class TrajectoryLog:
    """Writes ``trajectories/step-XXXXXXXX.parquet`` of each step (counted from 0) into a run's folder.

    Whole groups are kept, drawn by the run's seed, as many as fit: after step ``s`` of ``S`` all files together take no more than
    ``(s + 1) / S`` of the budget. Nothing in here ends a run or makes it wait: what goes wrong is warned of once, and a step that
    comes while ``WAITING`` others are not written yet is not kept.
    """

    def __init__(self, run: Run, scorers: Scorers, tokenizer: Tokenizer, section: RunSection, steps: int) -> None:
        """``section.keep_trajectories_mib`` of a run of ``steps`` steps; with 0 nothing is fetched or written."""
        self._run = run
        self._scorers = scorers
        self._tokenizer = tokenizer
        self._seed = section.seed
        self._budget = section.keep_trajectories_mib * MIB
        self._steps = steps
        self._warned = False
        self._tasks: queue.Queue[tuple[Sequence[Handle], StepResult] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="trajectories", daemon=True)
        self.not_kept = 0
        if self._budget:
            self._thread.start()

    def keep(self, handles: Sequence[Handle], result: StepResult) -> None:
        """A step was trained on these batches; returns at once."""
        if not self._budget:
            return
        try:
            self._tasks.put_nowait((tuple(handles), result))
        except queue.Full:
            self._lost(result.step, f"those of {WAITING} steps before it are still being written")

    def wait(self) -> None:
        """Wait until all is written."""
        self._tasks.join()

    def close(self) -> None:
        """Write what is waiting, for at most ``END_S`` seconds."""
        if not self._thread.is_alive():
            return
        end = time.monotonic() + END_S
        with suppress(queue.Full):
            self._tasks.put(None, timeout=END_S)
            self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._lost(self._steps - 1, f"they were not written within {END_S:g} seconds")

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            handles, result = task
            try:
                self._write(ScoredBatch.concat(self._scorers.fetch(handles)), result)
            # A record for people: whatever is wrong with it, the training is not.
            except Exception as error:
                logging.getLogger(__name__).info("trajectories of step %d", result.step, exc_info=error)
                self._lost(result.step, f"{type(error).__name__}: {error}")
            finally:
                self._tasks.task_done()
        self._tasks.task_done()

    def _lost(self, step: int, why: str) -> None:
        self.not_kept += 1
        if not self._warned:
            self._warned = True
            self._run.warn(step, f"its trajectories were not kept ({why}); later steps that this happens to are not told of")

    def _write(self, scored: ScoredBatch, result: StepResult) -> None:
        scored, step = scored.in_order(), result.step
        spent = sum(file.stat().st_size for of, file in kept_trajectories(self._run.folder).items() if of != step)
        room = self._budget * (step + 1) // self._steps - spent
        chosen = choose_groups(scored, room - FILE_BYTES, (self._seed, step))
        if chosen:
            dropped = {outcome.row for outcome in result.rows if outcome.dropped}
            rows = list(self._trajectories(scored.take(chosen), dropped, result.version))
            write_sample(trajectory_file(self._run.folder, step), StepSample(step, rows, len(scored)))

    def _trajectories(self, scored: ScoredBatch, dropped: set[Any], version: int) -> Iterator[KeptTrajectory]:
        columns = {name: getattr(scored, name).rows() for name in ARRAYS}
        rewards = {name: channel.rows() for name, channel in scored.channels.items()}
        for i, row in enumerate(scored.rows):
            arrays: dict[str, Any] = {name: rows[i] for name, rows in columns.items()}
            yield KeptTrajectory(
                row=row,
                group_id=int(scored.group_ids[i]),
                prompt=self._tokenizer.decode(arrays["prompt_ids"].tolist()),
                token_texts=tuple(token_texts(self._tokenizer, arrays["response_ids"].tolist())),
                rewards={name: numbers[i] for name, numbers in rewards.items()},
                end_state=scored.end_states[i],
                dropped=row in dropped,
                weights_version=version,
                scorer_version=scored.scorer_version,
                **arrays,
            )


def choose_groups(scored: ScoredBatch, room: int, seed: tuple[int, int]) -> list[int]:
    """Indices of rows, in order, of whole groups that fit into so many bytes, in an order drawn by the seed."""
    numbers = sum(channel.lengths for channel in scored.channels.values())
    tokens, prompts = scored.response_ids.lengths, scored.prompt_ids.lengths
    sizes = ROW_BYTES + TOKEN_BYTES * tokens + PROMPT_TOKEN_BYTES * prompts + 4 * numbers
    groups, of_row = np.unique(scored.group_ids, return_inverse=True)
    costs = np.bincount(of_row, sizes)
    order = np.random.default_rng(seed).permutation(groups.size)
    fitting = order[np.cumsum(costs[order]) <= room]
    return np.flatnonzero(np.isin(of_row, fitting)).tolist()


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it; the last token of a character has all of it."""
    texts: list[str] = []
    # What is decoded again to see what a token adds, and what is complete.
    start = complete = 0
    for end in range(1, len(ids) + 1):
        before, now = tokenizer.decode(ids[start:complete]), tokenizer.decode(ids[start:end])
        if now.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, complete = complete, end
    return texts
