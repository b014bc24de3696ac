"""An environment whose failures and delays cost its own row alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from dvpo_ray.config.environments import CRASHED, TIMEOUT, EnvironmentSettings
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.environments.base import Environment, EnvironmentRow, Turn, make_environment
from dvpo_ray.errors import ConfigError
from dvpo_ray.io.error_text import said_of

# The kind of a failure that comes when the episode has ended.
CLOSE = "close"
# Takes the kind of a failure, and what happened.
Tell = Callable[[str, str], None]


class GuardedEnvironment:
    """One episode of an environment, awaited with deadlines.

    Attributes:
        ended: how its own failure ended the episode: ``crashed`` or ``timeout``; empty while it works.
    """

    def __init__(self, settings: EnvironmentSettings, row: EnvironmentRow, tell: Tell) -> None:
        """``tell`` hears of every failure. Raises ConfigError when the environment cannot be imported."""
        self._limit = settings.turn_timeout_s
        self._row = row
        self._tell = tell
        self._environment: Environment | None = None
        self.ended = ""
        try:
            self._environment = make_environment(settings)
        except ConfigError:
            raise
        # It is the user's own, and may raise whatever it likes.
        except Exception as error:
            self.fail(error, "could not be made")

    async def reset(self) -> Messages:
        """Messages that follow the prompt; none where it failed."""
        environment = self._environment
        if environment is None:
            return ()
        found = await self._awaited("reset", lambda: environment.reset(self._row), _are_messages)
        return () if found is None else tuple(found)

    async def step(self, message: str) -> Turn | None:
        """The reply to a turn of the policy; None where it failed."""
        environment = self._environment
        assert environment is not None and not self.ended, "an environment that failed is asked for nothing more"
        turn: Turn | None = await self._awaited("step", lambda: environment.step(message), _is_turn)
        return turn

    async def close(self) -> None:
        """Let it give back what it holds, however the episode ended."""
        environment = self._environment
        if environment is None:
            return
        self._environment = None
        await self._awaited("close", environment.close, lambda nothing: None, kind=CLOSE)

    def fail(self, error: BaseException, what: str, kind: str = CRASHED) -> None:
        """The episode ends because of an exception; one while it closes changes nothing any more."""
        self._failed(kind, f"{what}: {said_of(error)}")

    async def _awaited(
        self, method: str, call: Callable[[], Awaitable[Any]], check: Callable[[Any], None], kind: str = CRASHED
    ) -> Any:
        async def called() -> Any:
            try:
                found = await call()
            except (SystemExit, KeyboardInterrupt) as error:
                # Out of a task these would end the engine's event loop.
                raise RuntimeError(f"it asked for the end of the process: {error!r}") from error
            check(found)
            return found

        task = asyncio.create_task(called())
        try:
            await asyncio.wait([task], timeout=self._limit)
        finally:
            task.cancel()
        if not task.done():
            self._failed(TIMEOUT if kind == CRASHED else kind, f"did not end {method} within turn_timeout_s = {self._limit:g}")
            return None
        error = asyncio.CancelledError("it cancelled itself") if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error, f"failed in {method}", kind)
            return None
        return task.result()

    def _failed(self, kind: str, text: str) -> None:
        self.ended = self.ended or (kind if kind != CLOSE else "")
        self._tell(kind, f"row {self._row.row}: its environment {text}")


def _are_messages(found: Any) -> None:
    """Raises TypeError when ``reset`` returned something else."""
    if not isinstance(found, tuple | list) or not all(isinstance(one, Message) for one in found):
        raise TypeError(f"reset returned {str(found)[:100]}, expected a tuple of Message")


def _is_turn(found: Any) -> None:
    """Raises TypeError when ``step`` returned something else."""
    if not isinstance(found, Turn):
        raise TypeError(f"step returned {str(found)[:100]}, expected a Turn")
