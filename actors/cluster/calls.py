"""Calls on actors: deadlines, and errors that name the actor and what it was doing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError

from actors.cluster.hosting import end_actor
from actors.cluster.picklable_errors import described
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.errors import (
    ActorDiedError,
    ActorFailedError,
    ActorTimeoutError,
    DvpoError,
    PermanentFailureError,
    RaisedError,
    RowsLostError,
)


@contextmanager
def actor_errors(who: str, doing: str) -> Iterator[None]:
    """Turn Ray's errors into ours, naming the actor and what it was doing."""
    try:
        yield
    except GetTimeoutError as error:
        raise ActorTimeoutError(
            f"{who} did not finish {doing} in time; raise cluster.call_timeout_s if the work is that long, else look at its log, "
            "where learners and scorers leave the stacks of their threads"
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, DvpoError) and not isinstance(error.cause, RaisedError):
            raise error.cause from error
        if isinstance(error.cause, ObjectLostError):
            raise RowsLostError(f"{who}: what it was given is lost, while {doing}: {error.cause}") from error
        raise failure(error.cause if isinstance(error.cause, RaisedError) else described(who, error.cause), doing) from error
    except RayActorError as error:
        raise ActorDiedError(f"{who} died while {doing}: {_first_and_last_line(error)}", error.preempted) from error
    except ObjectLostError as error:
        raise RowsLostError(f"{who}: what it gave is lost, while {doing}: {_first_and_last_line(error)}") from error
    except RayError as error:
        raise ActorFailedError(f"{who}: Ray failed while {doing}: {_first_and_last_line(error)}") from error


def failure(error: RaisedError, doing: str) -> ActorFailedError:
    """What an actor raised, once it is known what it was doing."""
    text = f"{error.actor} failed while {doing}: {error.told}"
    if error.again:
        return PermanentFailureError(f"{text}\nthe same work would fail again, so it was tried once")
    return ActorFailedError(text, sentence=error.sentence and f"{doing}: {error.sentence}")


def _first_and_last_line(error: RayError) -> str:
    """What Ray says happened and why, without the table between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else repr(error)


def get(refs: Any, timeout: float, who: str, doing: str) -> Any:
    """``ray.get`` with a deadline and our errors."""
    with actor_errors(who, doing):
        return ray.get(refs, timeout=timeout)


def mean_busy_seconds(actors: Sequence[Any], cluster: ClusterSection, who: str) -> float:
    """What the actors say of their busy time, averaged."""
    seconds = get([actor.busy_seconds.remote() for actor in actors], cluster.call_timeout_s, who, "telling its busy time")
    return sum(seconds) / len(seconds)


def stop_actors(actors: Sequence[Any], timeout: float = 30.0) -> list[bool]:
    """Ask actors to stop, and end those that are dead already or do not answer; returns which did stop."""
    calls = [actor.stop.remote() for actor in actors]
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=timeout)
    stopped = [_ended_well(call) for call in calls]
    for actor in actors:
        end_actor(actor)
    return stopped


def _ended_well(call: Any) -> bool:
    try:
        ray.get(call, timeout=0)
    except ray.exceptions.RayError:
        return False
    return True
