"""The loop of trainings on a fixed set of pairs: every pair once an epoch, checkpoints, and going on after one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.errors import RECOVERABLE_ERRORS
from dvpo_ray.loop.checkpointer import Checkpointer, LoopHooks
from dvpo_ray.loop.restarts import Restarts
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Checkpointing, Restarting


class OfflineLearner(Checkpointing, Restarting, Protocol):
    """Who trains on pairs; its ranks may be started again ``max_restarts`` times."""

    max_restarts: int


@dataclass
class PairTrainer:
    """All steps of a training on pairs.

    Args:
        row_ids: names of all pairs, and of answers in none.
        batches: indices of each step's rows.
        data_sha256: fingerprint of the rows, kept in checkpoints.
        learn: trains on them, given the step, and returns its metrics.
        draining: which of ``learner`` and ``driver`` (this process) are on machines that are about to be taken away.
        evaluates: whether so many finished steps are evaluated before training goes on.
        evaluate: evaluates them, and returns their held-out score; a run that is to stop does not wait for it.
    """

    row_ids: Sequence[str]
    batches: Sequence[np.ndarray]
    data_sha256: str
    learn: Callable[[int, np.ndarray], dict[str, float]]
    learner: OfflineLearner
    run: Run
    checkpointer: Checkpointer
    draining: Callable[[], set[str]] = set
    evaluates: Callable[[int], bool] = lambda steps: False
    evaluate: Callable[[int], float | None] = lambda steps: None

    def train(self, checkpoint: Checkpoint | None) -> None:
        """Train from the start, or from a checkpoint. Ranks that die are started again, on the newest checkpoint.

        Raises:
            RunStoppedError: the run was asked to stop, and did after a checkpoint.
        """
        self.checkpointer.serve(
            LoopHooks(
                state=self._state,
                draining=self.draining,
                evaluates=self.evaluates,
                evaluate=self.evaluate,
                skipped={"loss/skipped_updates": "model"},
            )
        )
        restarts = Restarts(self.learner, self.learner.max_restarts, self.run, self.checkpointer)
        if checkpoint is not None:
            self.run.resume(checkpoint)
        while True:
            try:
                if checkpoint is not None:
                    self.learner.load_checkpoint(str(checkpoint.folder.resolve()))
                return self._train_from(0 if checkpoint is None else checkpoint.step)
            except RECOVERABLE_ERRORS as error:
                restarts.restart(error)
                checkpoint = self.checkpointer.store.newest() or checkpoint
                self.run.go_back(checkpoint)

    def _train_from(self, done: int) -> None:
        """The steps after the first ``done``."""
        run = self.run
        self.checkpointer.stop_if_asked(done)
        with run.stop.finishing(run.pace.plan_of_step):
            for step in range(done, len(self.batches)):
                self._train_step(step)
            self.checkpointer.finish()

    def _train_step(self, step: int) -> None:
        run, rows = self.run, self.batches[step]
        began = time.time()
        run.pace.begin()
        run.stage(step, "learn")
        metrics = self.learn(step, rows)
        run.timeline.add("learn", began, time.time(), step=step)
        run.log(step, metrics | {"seconds/step": time.time() - began})
        self.checkpointer.after_step(step, metrics, lambda: ", ".join(self.row_ids[i] for i in rows))

    def _state(self, steps: int) -> dict[str, Any]:
        return {"data_sha256": self.data_sha256}
