"""The one family of errors a user can meet.

Every message says what happened, the value that was met, what was done about it and how to mend it.
Each class also inherits the built-in exception a caller would naturally catch, and survives pickling, so it crosses
Ray's process borders unchanged.
"""

from __future__ import annotations

from typing import Any, Self


class DvpoError(Exception):
    """Base of all errors raised on purpose by this package."""


class UserInputError(DvpoError, ValueError):
    """Something the user gave is wrong: command line exit code 2."""


class ConfigError(UserInputError):
    """A recipe or an override does not make a valid configuration."""


class DataError(UserInputError):
    """A dataset cannot be used as it is."""


class ModelError(UserInputError):
    """A model folder is missing something, was altered, or does not match its manifest."""


class RunError(DvpoError, RuntimeError):
    """A run failed for a reason that is not the user's input: command line exit code 1."""


class ActorFailedError(RunError):
    """An actor died, hung past its deadline, or reported a failure; the message names it."""

    def __init__(self, message: str, preempted: bool = False, sentence: str = "") -> None:
        """``preempted``: its node was taken away after notice, which is no fault of the actor. ``sentence``: what it raised while
        doing what, without figures that change: when it comes again it will every time. Empty for what may pass."""
        super().__init__(message)
        self.preempted = preempted
        self.sentence = sentence

    def __reduce__(self) -> tuple[type[ActorFailedError], tuple[Any, ...]]:
        return type(self), (str(self), self.preempted, self.sentence)


class PermanentFailureError(ActorFailedError):
    """An actor failed in a way in which the same work fails every time: it is not tried again."""


class RaisedError(DvpoError):
    """An exception that is none of ours, as the actor that met it tells it to whoever called; they know what it was doing."""

    def __init__(self, actor: str, told: str, again: bool, sentence: str = "") -> None:
        """``told`` are type, message and place; ``again``: the same work fails every time; ``sentence`` as of ActorFailedError,
        without what was being done."""
        super().__init__(f"{actor}: {told}")
        self.actor, self.told, self.again, self.sentence = actor, told, again, sentence

    def __reduce__(self) -> tuple[type[RaisedError], tuple[Any, ...]]:
        return type(self), (self.actor, self.told, self.again, self.sentence)


class ActorDiedError(ActorFailedError):
    """An actor's process ended; what it was asked for may be asked of another."""


class ActorTimeoutError(ActorFailedError):
    """An actor did not answer in time."""


class RowDeadlineError(ActorFailedError):
    """A row was not answered in time."""

    def __init__(self, message: str, row: Any) -> None:
        super().__init__(message)
        self.row = row

    def __reduce__(self) -> tuple[type[RowDeadlineError], tuple[Any, ...]]:
        return type(self), (str(self), self.row)


class RowsLostError(ActorFailedError):
    """Answers or scores are gone with the node that held them; they can be made again."""


class LearnerLostError(ActorFailedError):
    """A learner rank died or hangs; the ranks live and die together."""


# What a run goes on after, from its last checkpoint.
RECOVERABLE_ERRORS = (LearnerLostError, RowsLostError)


BY_RESUMING = "--resume auto goes on"


class RunStoppedError(RunError):
    """The run was asked to stop.

    ``exit_code`` is that of the command line: 1 for a machine that is taken away, 130 after Ctrl-C, 143 after SIGTERM.
    """

    exit_code = 1

    @classmethod
    def as_asked(cls, where: str, again: str = BY_RESUMING) -> Self:
        """The error of a run whose work is kept: ``where`` it stopped ("after step 3 of 9"), and who goes on with it."""
        return cls(f"stopped {where}, as asked: {again}")


class DiskFullError(RunError):
    """There is no room on a disk for what is to be written."""


class WeightSyncError(RunError):
    """New weights did not reach an engine intact; the engine is fenced."""


class DamagedWeightsError(WeightSyncError):
    """A bucket of weights is not what its digest says; it was refused before an engine took it."""


class CheckpointError(RunError):
    """A checkpoint could not be written, or what lies on the disk is damaged or of another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not what its manifest says."""


class ServedModelError(RunError):
    """Engines and learner give other log-probs for the same tokens."""


class FrozenValueChangedError(RunError):
    """The frozen value model's parameters changed during a run."""


class NonFiniteUpdateError(RunError):
    """Loss or gradient was NaN or infinite too many times in a row."""


class UnhealthyRunError(RunError):
    """A step's numbers have been bad for too many steps in a row."""


class RewardError(RunError):
    """A reward or gold function failed, or gave something other than a finite number for each answer."""


class JudgeError(RunError):
    """The service that judges answers refuses, or keeps failing."""


class RequestRefusedError(JudgeError):
    """The service that judges answers refused one request, for what it holds; others may be answered."""


class StaleRowsError(RunError):
    """Answers are older than the run allows, or newer than they can be."""


def exit_code_of(error: BaseException) -> int:
    """The command line's exit code for an error: 2 for bad input, that of the signal for a stop, 1 for all others."""
    if isinstance(error, RunStoppedError):
        return error.exit_code
    return 2 if isinstance(error, UserInputError) else 1
