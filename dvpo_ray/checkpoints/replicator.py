"""Copies finished checkpoints to another place, in a thread, while training goes on."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from dvpo_ray.checkpoints.remote import RemoteStore
from dvpo_ray.checkpoints.retention import Retention
from dvpo_ray.checkpoints.store import Checkpoint, CheckpointStore, score_in
from dvpo_ray.config.sections import CheckpointSection
from dvpo_ray.errors import CheckpointError, ConfigError, DamagedCheckpointError

MOST_WAITING = 4
FIRST_PAUSE_S = 1.0


class CheckpointReplicator:
    """Copies checkpoints in their order. A copy that fails is tried again, then given up and told of; the run goes on."""

    def __init__(
        self, target: RemoteStore, store: CheckpointStore, config: CheckpointSection, first_pause_s: float = FIRST_PAUSE_S
    ) -> None:
        """``first_pause_s`` passes before a second attempt, twice as long before each further one."""
        self.target = target
        self.copied, self.failed = 0, 0
        self._store = store
        self._attempts, self.wait_s, self._pause_s = config.copy_attempts, config.copy_wait_s, first_pause_s
        self._retention = Retention(config.keep_last, config.keep_every, config.keep_best)
        self._scores: dict[int, float | None] = {}
        self._waiting: deque[Checkpoint] = deque()
        self._current: Checkpoint | None = None
        self._news: list[tuple[int, str]] = []
        self._change = threading.Condition()
        self._closing = self._abandoned = False
        self._thread: threading.Thread | None = None

    def resume(self, step: int, replace: bool) -> None:
        """Prepare for a run that goes on from its checkpoint of ``step``, or starts (0). Copies of later steps go: they come
        again.

        Raises:
            ConfigError: the run starts, ``replace`` is off, and checkpoints are there.
            CheckpointError: one there is of another format, or not signed with the key.
        """
        found = self.target.steps()
        if found and not step and not replace:
            raise ConfigError(
                f"checkpoint.copy_to = '{self.target.url}' already holds checkpoints, and this run goes on from none of them: "
                "choose another copy_to, set run.overwrite=true to replace them, or run.resume=auto"
            )
        for other in found:
            if other > step:
                self.target.remove(other)
            else:
                self._scores[other] = self._score(other)

    def add(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint soon; its folder stays until then."""
        with self._change:
            if len(self._waiting) == MOST_WAITING:
                self._give_up(self._waiting.popleft(), "checkpoints come faster than they can be copied: raise checkpoint.every")
            self._store.in_use.add(checkpoint.step)
            self._waiting.append(checkpoint)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="copies", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def news(self) -> list[tuple[int, str]]:
        """(trained steps, what went wrong) since it was asked last."""
        with self._change:
            news, self._news = self._news, []
        return news

    def close(self) -> None:
        """Wait for the last copy, ``checkpoint.copy_wait_s`` at most; what is not copied by then is given up."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        if self._thread is None:
            return
        self._thread.join(self.wait_s)
        with self._change:
            self._abandoned = self._thread.is_alive()
            for checkpoint in (self._current, *self._waiting):
                if checkpoint is not None:
                    self._give_up(checkpoint, f"it took longer than checkpoint.copy_wait_s = {self.wait_s:g} after the run's end")
            self._waiting.clear()
            self._change.notify_all()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                checkpoint = self._current = self._waiting.popleft()
            error = self._try(partial(self.target.put, checkpoint))
            with self._change:
                if self._abandoned:
                    return
                self._current = None
                if error is None:
                    self.copied += 1
                    self._store.in_use.discard(checkpoint.step)
                    self._scores[checkpoint.step] = checkpoint.score
                else:
                    self._give_up(checkpoint, str(error))
            self._retire()

    def _retire(self) -> None:
        for step in sorted(set(self._scores) - self._retention.kept(self._scores)):
            error = self._try(partial(self.target.remove, step))
            del self._scores[step]
            if error is not None:
                with self._change:
                    self._news.append((step, f"its old copy at '{self.target.url}' could not be removed: {error}"))

    def _give_up(self, checkpoint: Checkpoint, why: str) -> None:
        self.failed += 1
        self._store.in_use.discard(checkpoint.step)
        self._news.append(
            (checkpoint.step, f"its checkpoint was not copied to '{self.target.url}': {why}; '{checkpoint.folder}' stands")
        )

    def _try(self, work: Callable[[], None]) -> CheckpointError | None:
        """The last error when all attempts failed."""
        for attempt in range(self._attempts):
            try:
                work()
                return None
            except CheckpointError as error:
                last = error
            if attempt + 1 < self._attempts:
                with self._change:
                    self._change.wait_for(lambda: self._abandoned, timeout=self._pause_s * 2**attempt)
        return last

    def _score(self, step: int) -> float | None:
        try:
            return score_in(self.target.manifest(step, self._store.key).state)
        except DamagedCheckpointError as error:
            logging.getLogger(__name__).warning("%s; it is never gone on from", error)
            return None
