"""How many answers an engine is given at a time, and from when their deadline counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from actors.rollout import ROWS_GIVEN, RolloutActor
from dvpo_ray.config.sections import EngineSection, RolloutSection
from dvpo_ray.errors import RowDeadlineError
from dvpo_ray.rows import GenerationRequest

SEQUENCES = 3


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
    """An engine that answers in turn, and remembers how many it had at most."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.given = self.most = 0
        self._turn = asyncio.Lock()

    async def generate(self, prompt: Any, sampling: Any, row_id: str) -> AsyncIterator[Any]:
        self.given += 1
        self.most = max(self.most, self.given)
        async with self._turn:
            await asyncio.sleep(self.seconds)
        yield SimpleNamespace(outputs=[SimpleNamespace()])
        self.given -= 1


def actor_of(monkeypatch: pytest.MonkeyPatch, engine: Any, row_timeout_s: float) -> RolloutActor:
    answer = SimpleNamespace(response_ids=SimpleNamespace(size=1))
    monkeypatch.setattr("actors.rollout._to_answer", lambda request, output: SimpleNamespace(**vars(answer), row=request.row_id))
    monkeypatch.setattr("actors.rollout.sampling_params", lambda config, seed: None)
    config = RolloutSection(row_timeout_s=row_timeout_s, engine=EngineSection(max_num_seqs=SEQUENCES))
    actor = RolloutActor("none", config, 0)
    actor._engine, actor._fence = engine, None
    return actor


def rows_of(actor: RolloutActor, count: int) -> list[str]:
    async def ask() -> list[str]:
        requests = [GenerationRequest(f"r{i}", (1,), seed=i) for i in range(count)]
        return [answer.row async for answer in actor.generate(requests)]  # type: ignore[attr-defined]

    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        return runner.run(ask())


def test_rows_that_wait_their_turn_are_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them take ten times as long as one may; those given to the engine together, nearly all of it."""
    engine, places = OneAtATime(seconds=7.0), ROWS_GIVEN * SEQUENCES
    actor = actor_of(monkeypatch, engine, row_timeout_s=places * engine.seconds + 1)
    rows = rows_of(actor, 10 * places)
    assert sorted(rows) == sorted(f"r{i}" for i in range(10 * places))
    assert engine.most == places


def test_a_row_that_its_engine_does_not_answer_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = actor_of(monkeypatch, OneAtATime(seconds=60.0), row_timeout_s=59.0)
    with pytest.raises(RowDeadlineError, match=r"row r0: no complete answer within 59\.0 s"):
        rows_of(actor, 100)
