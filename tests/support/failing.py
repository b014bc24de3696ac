"""What raises in actors: exceptions of every kind that Ray cannot carry, or that come every time."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator, Sequence

from dvpo_ray.errors import DataError


class NeedsMore(Exception):
    """Cannot be made again from its pickle."""

    def __init__(self, got: int, expected: int) -> None:
        super().__init__(f"{got} layers, expected {expected}")


class HoldsLock(Exception):
    """Cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class NoPickle(Exception):
    """Fails while it is pickled, which ends a worker of Ray's."""

    def __reduce__(self) -> str:
        raise RuntimeError("not this one")


class NoText(Exception):
    """Fails while it is printed."""

    def __str__(self) -> str:
        raise KeyError("text")


def fail(how: str) -> None:
    """Raise in one of many ways.

    Raises:
        Exception: of that way.
    """
    if how == "needs more":
        raise NeedsMore(1, 2)
    if how == "holds lock":
        raise HoldsLock("the lock is mine")
    if how == "no pickle":
        raise NoPickle("never to be sent")
    if how == "no text":
        raise NoText
    if how == "huge":
        raise ValueError("x" * 10**6)
    if how == "chain":
        try:
            {}["layer"]
        except KeyError as error:
            raise ValueError("no such layer") from error
    if how == "index":
        [0][5]
    if how == "unknown":
        raise RuntimeError(f"CUDA error at {id(fail):#x}: device-side assert, process {os.getpid()}")
    if how == "passing":
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4711")
    if how == "ours":
        raise DataError("row 3 of 'x' is empty; fill it")
    if how == "exit":
        raise SystemExit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "killed":
        os._exit(9)


class FailingActor:
    """Methods of every kind that Ray has."""

    def fail(self, how: str) -> None:
        """As the function."""
        fail(how)

    def pid(self) -> int:
        """This process's id."""
        return os.getpid()

    def stop(self) -> None:
        """Nothing to stop."""


class FailingRank(FailingActor):
    """A learner's rank that has no model."""

    def __init__(self, rank: int, world: int, *given: object) -> None:
        self.rank, self.world = rank, world

    def rendezvous(self) -> tuple[str, int]:
        """Nowhere."""
        return "", 0

    def start(self, address: str, port: int) -> int:
        """Nothing to load."""
        return os.getpid()

    def node(self) -> str:
        """No node of Ray's."""
        return ""


class FailingAsyncActor:
    """As an engine's actor: coroutines and generators."""

    def __init__(self) -> None:
        self.ended = False

    async def fail(self, how: str) -> None:
        """As the function."""
        fail(how)

    async def stream(self, how: str) -> AsyncIterator[int]:
        """One item, then the failure."""
        try:
            yield 1
            fail(how)
        finally:
            self.ended = True


def reward(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """A reward of a user's, with a mistake."""
    raise HoldsLock(f"no opinion on {len(answers)} answers")


class Dying:
    """An actor whose process ends."""

    def die(self) -> None:
        """End, after a word."""
        print("my last words", file=sys.stderr, flush=True)
        os._exit(3)
