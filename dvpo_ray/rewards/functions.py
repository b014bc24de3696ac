"""Rewards that are Python functions of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from dvpo_ray.config.rewards import FunctionReward
from dvpo_ray.errors import RewardError
from dvpo_ray.io.error_text import said_of
from dvpo_ray.registry import load_entry_point
from dvpo_ray.rewards.base import RewardRow, Score


class FunctionChannel:
    """A function of (prompts, answers), or of rows; it may be async."""

    def __init__(self, settings: FunctionReward, name: str) -> None:
        """Raises ConfigError when the function cannot be imported."""
        self._what, self._path = f"reward '{name}'", settings.function
        self._function = load_entry_point(settings.function)
        self._takes_rows = _takes_rows(self._function)

    async def __call__(self, rows: Sequence[RewardRow]) -> Sequence[Score]:
        """What the function returns for the rows."""
        given: tuple[Any, ...] = (list(rows),)
        if not self._takes_rows:
            given = [row.prompt for row in rows], [row.answer for row in rows]
        try:
            found = self._function(*given)
            return await found if inspect.isawaitable(found) else found
        # Whatever it raises is the user's to mend, an exit too: Ray would take it for one of the actor's.
        except (Exception, SystemExit) as error:
            raise _failed(self._what, self._path, len(rows), error) from error


def called(what: str, path: str) -> Callable[[Sequence[str], Sequence[str]], Sequence[float]]:
    """The function of (prompts, answers) that ``path`` names; ``what`` it is for.

    Raises:
        ConfigError: it cannot be imported.
    """
    function = load_entry_point(path)

    def call(prompts: Sequence[str], answers: Sequence[str]) -> Sequence[float]:
        try:
            found: Sequence[float] = function(prompts, answers)
            return found
        # Whatever it raises is the user's to mend.
        except Exception as error:
            raise _failed(what, path, len(answers), error) from error

    return call


def _failed(what: str, path: str, count: int, error: BaseException) -> RewardError:
    return RewardError(
        f"{what}: {path} failed on {count} answers: {said_of(error)}\nmend the function and go on with --resume auto"
    )


def _takes_rows(function: Any) -> bool:
    """Whether a function asks for whole rows: it takes one argument, or its first is called ``rows``."""
    taken = [
        one
        for one in inspect.signature(function).parameters.values()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) and one.default is one.empty
    ]
    return len(taken) == 1 or (bool(taken) and taken[0].name == "rows")
