"""When a run checkpoints, and how it gets back to a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvpo_ray.checkpoints.replicator import CheckpointReplicator
from dvpo_ray.checkpoints.store import Checkpoint, CheckpointStore
from dvpo_ray.runs.folder import save_records
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Checkpointing


class Checkpointer:
    """Begins checkpoints when they are due and ends them a step later: meanwhile they are written while training goes on."""

    def __init__(
        self,
        store: CheckpointStore,
        learner: Checkpointing,
        run: Run,
        every: int,
        steps: int,
        copier: CheckpointReplicator | None = None,
    ) -> None:
        """``copier`` is given every checkpoint, and the run's records are then part of it."""
        self.store = store
        self._learner = learner
        self._run = run
        self._every = every
        self._steps = steps
        self._copier = copier
        self._pending: tuple[int, Path, Mapping[str, Any], Mapping[str, str]] | None = None
        self._began = 0.0

    def due(self, step: int) -> bool:
        """Whether to checkpoint after so many trained steps."""
        return bool(self._every) and (step % self._every == 0 or step == self._steps)

    def begin(self, step: int, state: Mapping[str, Any]) -> None:
        """Start a checkpoint of ``step`` trained steps; ``state`` is the driver's part, as it is now."""
        self.finish()
        began = time.time()
        folder = self.store.begin(step)
        records = save_records(self._run.folder, folder) if self._copier else {}
        self._pending, self._began = (step, folder, state, records), began
        self._learner.begin_checkpoint(str(folder.resolve()))
        self._run.timeline.add("checkpoint", began, time.time(), step=step)

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
