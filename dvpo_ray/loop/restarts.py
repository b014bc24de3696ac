"""How often actors that were lost are started again."""

from __future__ import annotations

from collections.abc import Collection

from dvpo_ray.errors import ActorFailedError, LearnerLostError, PermanentFailureError
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Restarting


class Sentences:
    """What actors that failed have said, where it is not known whether the same work fails again: twice the same, and it does."""

    def __init__(self) -> None:
        # Who may still say a sentence that was said, because it was at work beside the first.
        self._said: dict[str, set[str]] = {}

    def hear(self, error: ActorFailedError, who: str = "", beside: Collection[str] = ()) -> None:
        """Remember a failure of ``who``; one event may take all that were at work ``beside`` it, who may say the same once each.

        Raises:
            PermanentFailureError: it was said before, by somebody who has been started since.
        """
        if not error.sentence:
            return
        excused = self._said.get(error.sentence)
        if excused is not None and who not in excused:
            raise PermanentFailureError(f"{error}\nit was tried again once, and failed in the same way") from error
        self._said.setdefault(error.sentence, set(beside)).discard(who)

    def forget(self) -> None:
        """Since then the work went on."""
        self._said.clear()


class Restarts:
    """The budget of a run's learner."""

    def __init__(self, learner: Restarting, most: int, run: Run, checkpointer: Checkpointer) -> None:
        self._learner = learner
        self._left = most
        self._run = run
        self._checkpointer = checkpointer
        self._sentences = Sentences()

    def restart(self, error: ActorFailedError) -> None:
        """Start the learner again, and again should it be lost while it starts.

        Raises:
            ActorFailedError: that it was lost, once too often.
            PermanentFailureError: what it raised is what it had raised before, at the same work.
        """
        while True:
            self._sentences.hear(error)
            # A machine that is taken away is no fault.
            self._left -= not error.preempted
            if self._left < 0:
                raise error
            self._run.phase(f"{error}; starting the learner again")
            try:
                self._learner.restart()
                break
            except LearnerLostError as again:
                error = again
        # Only now does nobody write into it any more.
        self._checkpointer.discard_pending()
