"""How long a run's steps and checkpoints take, from those it has done: what is left of it, and what a stop waits for."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

from dvpo_ray.runs.stopping import ENDING_S, SECOND

RECENT = 8
# The slowest of recent steps is not the slowest there will be.
MARGIN = 1.25
# A checkpoint that none was measured before: written and hashed by one thread beside the training.
CHECKPOINT_BYTES_PER_S = 100e6


class Pace:
    """Of one run, in seconds. The first step of a process warms up, and counts only until there are others."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.checkpointed: int | None = None
        # What a checkpoint writes, as far as it is known before the first.
        self.checkpoint_bytes = 0.0
        # Time of what follows the last step, given that of a step; None where it cannot be told.
        self.later: Callable[[float], float | None] = lambda step_seconds: 0.0
        # How long the last copies of checkpoints are waited for, at most.
        self.copies_s = 0.0
        self._checkpoints: deque[float] = deque(maxlen=RECENT)
        self._steps: deque[float] = deque(maxlen=RECENT + 1)
        self._began = time.monotonic()

    def begin(self) -> None:
        """A step begins now."""
        self._began = time.monotonic()

    def step_done(self, steps: int, seconds: float) -> None:
        """So many steps are trained, the last in so long; the next begins."""
        self.done = steps
        self._steps.append(seconds)
        self.begin()

    def checkpoint_done(self, step: int, seconds: float) -> None:
        """So many steps are checkpointed, and that they are took so long."""
        self.checkpointed = step
        self._checkpoints.append(seconds)

    def go_back(self, step: int, checkpointed: bool) -> None:
        """The run goes on after so many steps, which a checkpoint holds or which are none."""
        self.done, self.checkpointed = step, step if checkpointed else None
        self.begin()

    @property
    def step_seconds(self) -> float | None:
        """A step's usual time; None before the first."""
        steady = list(self._steps)[1:] or list(self._steps)
        return median(steady) if steady else None

    def left(self) -> float | None:
        """Time until the last step is trained and what follows it is done; None before the first, or where it cannot be told."""
        usual = self.step_seconds
        later = None if usual is None else self.later(usual)
        if usual is None or later is None:
            return None
        return max(0.0, usual * (self.total - self.done) - (time.monotonic() - self._began)) + later

    def steps_take(self, steps: float) -> float | None:
        """Time that the slowest of the recent steps would take so many times; None before the first."""
        return MARGIN * steps * max(self._steps) if self._steps else None

    @property
    def checkpoint_seconds(self) -> float:
        """Time that a checkpoint takes at most, as far as can be told."""
        return MARGIN * max(self._checkpoints) if self._checkpoints else self.checkpoint_bytes / CHECKPOINT_BYTES_PER_S

    def kept(self) -> str:
        """What of the run is there when its driver is gone; nothing is ""."""
        return f"the checkpoint of step {self.checkpointed}" if self.checkpointed else ""

    def lost(self) -> str:
        """What an end now would lose, as a sentence goes on."""
        since = self.done - (self.checkpointed or 0)
        if not since:
            return "losing what is in hand alone"
        if not self.checkpointed:
            return f"losing all {_counted(since)} so far"
        return f"losing the {_counted(since)} since the checkpoint of step {self.checkpointed}"

    def _within(self, seconds: float) -> str:
        copies = f", and at most {self.copies_s:g} s more for its copies" if self.copies_s else ""
        return f"within {rounded(seconds + ENDING_S)}{copies}"

    def plan_of_step(self) -> str:
        """What a stop within a step does."""
        whole = self.steps_take(1)
        if whole is None:
            when = f"how long the first step takes is not known yet, and the rest {self._within(self.checkpoint_seconds)}"
        else:
            left = max(whole - (time.monotonic() - self._began), whole - whole / MARGIN)
            when = self._within(left + self.checkpoint_seconds)
        step = f"step {min(self.done + 1, self.total)} of {self.total}"
        return f"stopping: {step}, which is in hand, will be finished and checkpointed ({when}); {SECOND}, {self.lost()}"

    def plan_of_checkpoint(self) -> str:
        """What a stop within an evaluation of trained steps does."""
        when = self._within(self.checkpoint_seconds)
        return f"stopping: the evaluation is given up, step {self.done} is kept as a checkpoint ({when}); {SECOND}, {self.lost()}"

    def plan_of_rest(self, what: str, seconds: float | None) -> str:
        """What a stop within the work after the last step does, which takes so long from its beginning."""
        when = "how long that takes is not known" if seconds is None else self._within(seconds)
        return f"stopping: all steps are trained; {what} will be finished ({when}); {SECOND}, {self.lost()}"


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def rounded(seconds: float) -> str:
    """A time as people say it, never less than it is."""
    if seconds < 120:
        return f"{max(5, 5 * math.ceil(seconds / 5))} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{math.floor(minutes / 60)} h {minutes % 60} min"
