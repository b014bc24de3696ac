"""An environment that does what a test says."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dvpo_ray.config.environments import EnvironmentSettings
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.environments import EnvironmentRow, Turn


class Scripted(EnvironmentSettings):
    """What is done in each turn: ``say TEXT``, ``end REWARD``, ``earn REWARD`` and go on, ``raise``, ``hang``, ``nothing``."""

    implementation = "tests.support.environments:ScriptedEnvironment"

    type: Literal["scripted"] = "scripted"
    script: Annotated[tuple[str, ...], Field(strict=False)] = ()
    opening: str = ""
    closing: str = ""
    role: str = "tool"


class ScriptedEnvironment:
    """Plays a script, and keeps what it was given."""

    made: ClassVar[list[ScriptedEnvironment]] = []

    def __init__(self, settings: Scripted) -> None:
        if settings.opening == "raise when made":
            raise RuntimeError("no room")
        self._settings = settings
        self.row: EnvironmentRow | None = None
        self.heard: list[str] = []
        self.closed = 0
        self.hangs = asyncio.Event()
        self.made.append(self)

    async def reset(self, row: EnvironmentRow) -> Messages:
        """What the script says before the first turn."""
        self.row = row
        if not self._settings.opening:
            return ()
        found: Any = await self._done(self._settings.opening)
        return found.messages if isinstance(found, Turn) else found

    async def step(self, message: str) -> Any:
        """What the script says after this turn."""
        self.heard.append(message)
        return await self._done(self._settings.script[len(self.heard) - 1])

    async def close(self) -> None:
        """Count it."""
        self.closed += 1
        if self._settings.closing:
            await self._done(self._settings.closing)

    async def _done(self, what: str) -> Any:
        verb, _, rest = what.partition(" ")
        if verb == "raise":
            raise ValueError(f"the {rest or 'database'} is gone")
        if verb == "hang":
            self.hangs.set()
            await asyncio.Event().wait()
        if verb == "end":
            return Turn(done=True, reward=float(rest.split()[0]), end_state=" ".join(rest.split()[1:]))
        if verb == "earn":
            return Turn((Message(self._settings.role, "more"),), reward=float(rest))
        return None if verb == "nothing" else Turn((Message(self._settings.role, rest),))
