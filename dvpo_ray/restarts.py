"""How often a learner that was lost is started again."""

from __future__ import annotations

from dvpo_ray.committer import Committer
from dvpo_ray.errors import ActorFailedError, LearnerLostError
from dvpo_ray.run import Run
from dvpo_ray.stages import Restarting


class Restarts:
    """The budget of one run."""

    def __init__(self, learner: Restarting, most: int, run: Run, committer: Committer) -> None:
        self._learner = learner
        self._left = most
        self._run = run
        self._committer = committer

    def restart(self, error: ActorFailedError) -> None:
        """Start the learner again, and again should it be lost while it starts.

        Raises:
            ActorFailedError: that it was lost, once too often.
        """
        while True:
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
        self._committer.forget()
