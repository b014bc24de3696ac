"""Actors whose errors can be pickled: whatever they raise reaches whoever called them, as ``RaisedError`` in words.

Of exceptions that cannot be pickled Ray tells only that; of those that cannot be made again from their pickle, not even the
message; and where pickling itself fails the actor's process dies.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import cache, wraps
from typing import Any

from ray.exceptions import RayError

from actors.cluster.failure_kinds import FailureKind, failure_kind, sentence
from actors.cluster.nodes import this_actor
from dvpo_ray.errors import DvpoError, RaisedError
from dvpo_ray.io.error_text import said_of


@cache
def with_picklable_errors(kind: type) -> type:
    """The same class, whose public methods raise nothing but our errors and Ray's (and what ends a process, as SystemExit).

    A class of its own: within a process, as in tests, the methods of ``kind`` raise what they raise.
    """
    methods = {name: method for name, method in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), names | {name: _with_picklable_errors(method) for name, method in methods.items()})


def described(actor: str, error: BaseException, outer: int = 0) -> RaisedError:
    """An exception in words, without the outermost ``outer`` frames of its traceback."""
    said = said_of(error, outer)
    found = failure_kind(error, said.text)
    known = sentence(said.text) if found is FailureKind.UNKNOWN else ""
    return RaisedError(actor, said.explained, found is FailureKind.PERMANENT, known)


@contextmanager
def picklable_errors() -> Iterator[None]:
    """Turn what is raised in the block into ``RaisedError``; its traceback goes to the log."""
    try:
        yield
    except (DvpoError, RayError):
        raise
    except Exception as error:
        logging.getLogger(__name__).error("%s failed", this_actor(), exc_info=error)
        # That of this block, and that of the method that it is in.
        raise described(this_actor(), error, outer=2) from error


def _with_picklable_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that raises in words, of the same kind: Ray calls coroutines and generators in their own ways."""
    if inspect.isasyncgenfunction(method):

        @wraps(method)
        async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            # One that is given up is ended at once, and not when memory is tidied.
            async with aclosing(method(*args, **kwargs)) as items:
                with picklable_errors():
                    async for item in items:
                        yield item

        return stream
    if inspect.iscoroutinefunction(method):

        @wraps(method)
        async def wait(*args: Any, **kwargs: Any) -> Any:
            with picklable_errors():
                return await method(*args, **kwargs)

        return wait

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with picklable_errors():
            return method(*args, **kwargs)

    return call
