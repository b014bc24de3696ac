"""Which answers are late: those of an engine that finishes none, and none that wait behind others."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from actors.rollout.actor import LOOK_S, RolloutActor
from dvpo_ray.config.sections import RolloutSection
from dvpo_ray.errors import ActorDiedError, RowDeadlineError
from dvpo_ray.types import RolloutRequest, Written
from tests.support.fakes import row


class InstantLoop(asyncio.SelectorEventLoop):
    """Time passes only when all wait, and then at once: deadlines do not depend on the machine."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class OneAtATime:
    """An engine that answers in turn, and hangs after so many."""

    def __init__(self, seconds: float, answers: int = 10**9) -> None:
        self.seconds = seconds
        self.answers = answers
        self.errored = False
        self.dead_error = EngineDeadError()
        self._turn = asyncio.Lock()

    async def generate(self, prompt: Any, sampling: Any, row_id: str) -> AsyncIterator[Any]:
        async with self._turn:
            await asyncio.sleep(self.seconds if self.answers else math.inf)
            self.answers -= 1
        yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="stop")])


def actor_of(monkeypatch: pytest.MonkeyPatch, engine: Any, row_timeout_s: float) -> RolloutActor:
    monkeypatch.setattr("actors.rollout.actor.sampled_by", lambda output, row: Written((1,), (0.0,), (0,)))
    monkeypatch.setattr("actors.rollout.actor.sampling_params", lambda config, seed, stop_ids, max_tokens: None)
    config = RolloutSection(row_timeout_s=row_timeout_s)
    actor = RolloutActor("none", config, 0)
    actor._engine, actor._fence = engine, None
    return actor


def rows_of(actor: RolloutActor, count: int) -> list[str]:
    async def ask() -> list[str]:
        requests = [RolloutRequest(row(f"r{i}"), (1,), seed=i) for i in range(count)]
        return [answer.row.prompt async for answer in actor.generate(requests)]  # type: ignore[attr-defined]

    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(ask())


def test_rows_that_wait_their_turn_are_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """One takes nearly as long as it may; the last of them begins when that time has passed many times."""
    actor = actor_of(monkeypatch, OneAtATime(seconds=7.0), row_timeout_s=8.0)
    assert rows_of(actor, 30) == [f"r{i}" for i in range(30)]


@pytest.mark.parametrize("answers", [0, 5])
def test_an_engine_that_finishes_nothing_is_late(monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    actor = actor_of(monkeypatch, OneAtATime(seconds=7.0, answers=answers), row_timeout_s=8.0)
    with pytest.raises(RowDeadlineError, match=r"row 0/0:r\d+/0: no complete answer within 8\.0 s") as caught:
        rows_of(actor, 30)
    assert int(caught.value.row.prompt[1:]) >= answers


def test_a_row_that_a_dead_engine_forgot_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OneAtATime(seconds=1.0, answers=2)
    actor = actor_of(monkeypatch, engine, row_timeout_s=300.0)

    async def die() -> None:
        await asyncio.sleep(30)
        engine.errored = True

    async def ask() -> None:
        requests = [RolloutRequest(row(f"r{i}"), (1,), seed=i) for i in range(4)]
        dying = asyncio.create_task(die())
        with pytest.raises(ActorDiedError, match="the engine's processes died"):
            [answer async for answer in actor.generate(requests)]  # type: ignore[attr-defined]
        assert dying.done() and asyncio.get_running_loop().time() <= 30 + 2 * LOOK_S

    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        runner.run(ask())
