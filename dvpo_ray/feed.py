"""The feed: rows of coming steps, generated and scored while the driver trains, never further ahead than allowed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from dvpo_ray.ledger import Ledger
from dvpo_ray.rows import GenerationRequest
from dvpo_ray.run import Run, StepRecord
from dvpo_ray.stages import Handle, Stages


class Feed:
    """Generates and scores one step's rows in a thread of its own for each step under way.

    Step n begins when step ``n - lead`` is about to be trained, so its oldest token is of weights ``n - lead``: no token is
    ever more than ``lead`` steps old when it is trained. With ``lead`` 0 a step begins when the one before is done.
    """

    def __init__(self, stages: Stages, ledger: Ledger, run: Run, steps: int, lead: int) -> None:
        self._stages = stages
        self._ledger = ledger
        self._run = run
        self._steps = steps
        self._lead = lead
        self._begun = 0
        self._under_way: dict[int, tuple[StepRecord, Future[list[Handle]]]] = {}
        self._threads = ThreadPoolExecutor(lead + 1, thread_name_prefix="feed")

    def __enter__(self) -> Self:
        self.trained(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After a failure threads may still wait for actors; they end with an error when the actors are taken down.
        self._threads.shutdown(wait=error is None, cancel_futures=True)

    def take(self, step: int) -> tuple[StepRecord, Sequence[Handle]]:
        """Wait for the scored rows of ``step``; raises what went wrong with them."""
        record, rows = self._under_way.pop(step)
        return record, rows.result()

    def trained(self, steps: int) -> None:
        """``steps`` steps are trained and their weights served: begin all that may begin now."""
        while self._begun < min(steps + self._lead + 1, self._steps):
            step, self._begun = self._begun, self._begun + 1
            requests = self._ledger.admit(step)
            record = self._run.record(step, step % (self._lead + 1))
            self._under_way[step] = record, self._threads.submit(self._collect, record, requests)

    def _collect(self, record: StepRecord, requests: Sequence[GenerationRequest]) -> list[Handle]:
        answers = record.stream("rollout", self._stages.rollouts.generate(requests))
        return record.drain("score", self._stages.scorers.score(answers))
