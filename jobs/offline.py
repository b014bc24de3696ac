"""The loop of trainings on a fixed set of pairs: every pair once an epoch, checkpoints, and going on after one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.cluster.nodes import draining, this_node
from actors.learner.gang import RestartableGang
from dvpo_ray.checkpoints.store import Checkpoint
from dvpo_ray.errors import AS_ASKED, RECOVERABLE_ERRORS, RunStoppedError
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.restarts import Restarts
from dvpo_ray.runs.run import Run


@dataclass
class PairTrainer:
    """All steps of a training on pairs.

    Args:
        row_ids: names of all pairs, and of answers in none.
        batches: indices of each step's rows.
        data_sha256: fingerprint of the rows, kept in checkpoints (``jobs.session.check_same_data``).
        learn: trains on them, given the step, and returns its metrics.
        evaluate: is called with the number of finished steps, and returns their held-out score when they are to have one; a run
            that is to stop does not wait for it.
    """

    row_ids: Sequence[str]
    batches: Sequence[np.ndarray]
    data_sha256: str
    learn: Callable[[int, np.ndarray], dict[str, float]]
    gang: RestartableGang
    run: Run
    checkpointer: Checkpointer
    evaluate: Callable[[int], float | None] = lambda step: None

    def train(self, checkpoint: Checkpoint | None) -> None:
        """Train from the start, or from a checkpoint. Ranks that die are started again, on the newest checkpoint.

        Raises:
            RunStoppedError: the run was asked to stop, and did after a checkpoint.
        """
        restarts = Restarts(self.gang, self.gang.max_restarts, self.run, self.checkpointer)
        if checkpoint is not None:
            if self.run.in_place:
                self.checkpointer.store.abandon_after(checkpoint.step)
            self.run.resume(checkpoint)
        while True:
            try:
                if checkpoint is not None:
                    self.gang.load_checkpoint(str(checkpoint.folder.resolve()))
                return self._train_from(0 if checkpoint is None else checkpoint.step)
            except RECOVERABLE_ERRORS as error:
                restarts.restart(error)
                checkpoint = self.checkpointer.store.newest() or checkpoint
                self.run.go_back(checkpoint)

    def _train_from(self, done: int) -> None:
        """The steps after the first ``done``."""
        run, steps = self.run, len(self.batches)
        self._check_wanted(done)
        with run.stop.finishing(run.pace.plan_of_step):
            for step in range(done, steps):
                self._train_step(step)
                self._check_wanted(step + 1)
            self.checkpointer.finish()

    def _train_step(self, step: int) -> None:
        run, checkpointer = self.run, self.checkpointer
        began = time.time()
        run.pace.begin()
        run.stage(step, "learn")
        metrics = self.learn(step, self.batches[step])
        run.timeline.add("learn", began, time.time(), step=step)
        run.log(step, metrics | {"seconds/step": time.time() - began})
        if metrics["loss/skipped_updates"]:
            names = ", ".join(self.row_ids[i] for i in self.batches[step])
            run.warn(step, f"an update was not finite and was withheld; the step's rows: {names}")
        checkpointer.finish()
        moving = self.gang.draining()
        if moving:
            run.warn(step, "the machine of the learner will be taken away: checkpointing")
        # The driver's end is that of the run, which goes on elsewhere.
        if draining([this_node()]):
            run.stopping = True
        score = self._score(step + 1)
        if checkpointer.due(step + 1) or run.stopping or moving:
            self._begin_checkpoint(step + 1, score)
        if moving or run.stopping:
            checkpointer.finish()

    def _score(self, steps: int) -> float | None:
        """The score of so many steps. Who asks the run to stop waits for the checkpoint, and not for a score of it."""
        if self.run.stopping:
            return None
        with self.run.stop.cutting(self.run.pace.plan_of_checkpoint):
            return self.evaluate(steps)
        return None

    def _check_wanted(self, steps: int) -> None:
        """Go no further than ``steps`` trained steps when the run is to stop.

        Raises:
            RunStoppedError: it is.
        """
        if self.run.stopping:
            self.keep(steps)
            if not steps:
                raise self.run.stop.stopped()
            raise RunStoppedError(f"stopped after step {steps} of {len(self.batches)}{AS_ASKED}")

    def keep(self, steps: int) -> None:
        """See to a checkpoint of ``steps`` trained steps, which were the last."""
        self.checkpointer.finish()
        if steps and self.run.pace.checkpointed != steps:
            self._begin_checkpoint(steps, None)
            self.checkpointer.finish()

    def _begin_checkpoint(self, steps: int, score: float | None) -> None:
        state: dict[str, Any] = self.run.facts() | {"score": score, "data_sha256": self.data_sha256}
        self.checkpointer.begin(steps, state)
