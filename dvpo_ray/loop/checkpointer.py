"""What every training does after a step: health, evaluation, checkpoint, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dvpo_ray.checkpoints.replicator import CheckpointReplicator
from dvpo_ray.checkpoints.store import Checkpoint, CheckpointStore
from dvpo_ray.errors import RECOVERABLE_ERRORS, DvpoError, RunError, RunStoppedError
from dvpo_ray.runs.folder import save_records
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Checkpointing


@dataclass(frozen=True)
class LoopHooks:
    """What a checkpointer asks of the training loop that it serves.

    Args:
        state: what the loop itself must remember after so many trained steps.
        draining: which of ``learner`` and ``driver`` (this process) are on machines that are about to be taken away.
        check: what is wrong with a step's metrics, a sentence each; raises UnhealthyRunError when it has been for too long.
        evaluates: whether so many trained steps are evaluated before training goes on.
        evaluate: evaluates them; returns their held-out score, or None when they have none.
        skipped: which model's withheld updates each of these metrics counts.
    """

    state: Callable[[int], Mapping[str, Any]]
    draining: Callable[[], set[str]] = set
    check: Callable[[Mapping[str, float]], list[str]] = lambda metrics: []
    evaluates: Callable[[int], bool] = lambda steps: False
    evaluate: Callable[[int], float | None] = lambda steps: None
    skipped: Mapping[str, str] = field(default_factory=dict)


class Checkpointer:
    """Begins checkpoints when they are due and ends them a step later: meanwhile they are written while training goes on.

    The loop calls ``serve`` once, and ``after_step`` after each of its steps.
    """

    def __init__(
        self,
        store: CheckpointStore,
        learner: Checkpointing,
        run: Run,
        every: int,
        steps: int,
        copier: CheckpointReplicator | None = None,
    ) -> None:
        """A checkpoint every ``every`` of ``steps`` steps and after the last; 0 makes none but those of ``keep``. ``copier`` is
        given every checkpoint, and the run's records are then part of it."""
        self.store = store
        self._learner = learner
        self._run = run
        self._every = every
        self._steps = steps
        self._copier = copier
        self._loop = LoopHooks(state=lambda steps: {})
        self._pending: tuple[int, Path, Mapping[str, Any], Mapping[str, str]] | None = None
        self._began = 0.0

    def serve(self, loop: LoopHooks) -> None:
        """Ask this loop from now on."""
        self._loop = loop

    def after_step(self, step: int, metrics: Mapping[str, float], rows: Callable[[], object]) -> None:
        """See to all that follows a trained step (counted from 0), of which ``metrics`` are recorded.

        Warns of withheld updates and of bad health, ends the checkpoint begun before, and evaluates when that is due. Begins a
        checkpoint when one is due, and when the run is to stop or a machine is about to be taken away; then it also waits for it.
        ``rows`` is called when an update was withheld, and names the rows of the step, or the file that keeps them.

        Raises:
            UnhealthyRunError: the step's numbers have been bad for too long.
            CheckpointError: a checkpoint could not be written.
            RunStoppedError: the run was asked to stop, and is checkpointed.
        """
        self._warn(step, metrics, rows)
        self.finish()
        leaving = self._leaving(step)
        # Who asked the run to stop waits for the checkpoint, and not for a score of it.
        score = None if self._run.stopping else self._evaluate_when_due(step + 1)
        if self.due(step + 1) or self._run.stopping or leaving:
            self.begin(step + 1, score)
        if leaving or self._run.stopping:
            self.finish()
        self.stop_if_asked(step + 1)

    def due(self, steps: int) -> bool:
        """Whether to checkpoint after so many trained steps."""
        return bool(self._every) and (steps % self._every == 0 or steps == self._steps)

    def begin(self, steps: int, score: float | None = None) -> None:
        """Start a checkpoint of so many trained steps, whose held-out score is given, and of the loop's state as it is now."""
        self.finish()
        began = time.time()
        state = {**self._loop.state(steps), **self._run.facts(), "score": score}
        folder = self.store.begin(steps)
        records = save_records(self._run.folder, folder) if self._copier else {}
        self._pending, self._began = (steps, folder, state, records), began
        self._learner.begin_checkpoint(str(folder.resolve()))
        self._run.timeline.add("checkpoint", began, time.time(), step=steps)

    def finish(self) -> Checkpoint | None:
        """Make a checkpoint of what was begun; returns at once unless it is still being written.

        Raises:
            CheckpointError: it could not be written; the checkpoints before it are as they were.
        """
        if self._copier is not None:
            self._run.warn_all(self._copier.news())
        if self._pending is None:
            return None
        (step, folder, state, records), self._pending = self._pending, None
        began = time.time()
        try:
            checkpoint = self.store.finish(step, folder, self._learner.end_checkpoint() | dict(records), state)
        except BaseException:
            self.store.discard_unfinished()
            raise
        if self._copier is not None:
            self._copier.add(checkpoint)
        self._run.timeline.add("checkpoint", began, time.time(), step=step)
        self._run.pace.checkpoint_done(step, time.time() - self._began)
        return checkpoint

    def discard_pending(self) -> None:
        """Give up what was begun: who was writing it is gone."""
        self._pending = None
        self.store.discard_unfinished()

    def keep(self, steps: int) -> None:
        """See to a checkpoint of so many trained steps, which were the last."""
        self.finish()
        if steps and self._run.pace.checkpointed != steps:
            self.begin(steps)
            self.finish()

    def stop_if_asked(self, steps: int) -> None:
        """Go no further than so many trained steps when the run is to stop.

        Raises:
            RunStoppedError: it is; they are checkpointed.
        """
        if self._run.stopping:
            self.keep(steps)
            if not steps:
                raise self._run.stop.stopped()
            raise RunStoppedError.as_asked(f"after step {steps} of {self._steps}")

    @contextmanager
    def keeping(self, steps: int) -> Iterator[None]:
        """Checkpoint so many trained steps when the block fails, in which the learner, not being at work, stays as it was."""
        try:
            yield
        except (*RECOVERABLE_ERRORS, RunStoppedError):
            raise
        except DvpoError:
            try:
                self.keep(steps)
                if steps:
                    self._run.phase(f"{steps} steps are checkpointed: --resume auto goes on after them")
            except RunError as trouble:
                self._run.warn(steps, f"the {steps} steps so far could not be checkpointed: {trouble}")
            raise

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """What is measured after the last step may be given up for the checkpoint of all steps.

        Raises:
            RunStoppedError: it was.
        """
        run = self._run
        with run.stop.finishing(run.pace.plan_of_checkpoint):
            with run.stop.cutting(run.pace.plan_of_checkpoint):
                yield
            self.stop_if_asked(self._steps)

    def _warn(self, step: int, metrics: Mapping[str, float], rows: Callable[[], object]) -> None:
        withheld = [model for name, model in self._loop.skipped.items() if metrics.get(name)]
        if withheld:
            of = " and ".join(withheld)
            self._run.warn(step, f"an update of the {of} was not finite and was withheld; its rows: {rows()}")
        for alarm in self._loop.check(metrics):
            self._run.warn(step, alarm)

    def _leaving(self, step: int) -> set[str]:
        """Which of learner and driver are on machines that will be taken away: the learner's work is checkpointed every step from
        now on, and the driver's end is that of the run, which goes on elsewhere."""
        leaving = self._loop.draining()
        if leaving:
            self._run.warn(step, f"the machine of the {' and the '.join(sorted(leaving))} will be taken away: checkpointing")
        if "driver" in leaving:
            self._run.stopping = True
        return leaving

    def _evaluate_when_due(self, steps: int) -> float | None:
        """The score of so many steps, for whose sake a stop does not wait."""
        if not self._loop.evaluates(steps):
            return None
        with self.keeping(steps), self._run.stop.cutting(self._run.pace.plan_of_checkpoint):
            score = self._loop.evaluate(steps)
            self._run.restart_clock()
            return score
        return None
