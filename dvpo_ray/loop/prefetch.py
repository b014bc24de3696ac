"""The prefetcher: rows of coming steps, generated and scored while the driver trains, never further ahead than allowed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from dvpo_ray.errors import RECOVERABLE_ERRORS
from dvpo_ray.loop.ledger import Ledger
from dvpo_ray.rollouts.observed import ObservedPlan
from dvpo_ray.runs.run import Run, StepRecord
from dvpo_ray.stages import Handle, Stages, retry_lost_rows
from dvpo_ray.types import RolloutRequest, RowId, ScoredBatch, ScorerVersion, outcomes


class RolloutPrefetcher:
    """Generates and scores one step's rows in a thread of its own for each step under way.

    Step n begins when step ``n - lead`` is about to be trained, so its oldest token is of weights ``n - lead``: no token is
    ever more than ``lead`` steps old when it is trained. With ``lead`` 0 a step begins when the one before is done.

    When ``streaming``, a step's batches are handed on as they are sent to be scored, else when all are scored.
    """

    def __init__(
        self,
        stages: Stages,
        plan: ObservedPlan,
        scorer_of: Callable[[int], ScorerVersion | None],
        ledger: Ledger,
        run: Run,
        first: int,
        steps: int,
        lead: int,
        streaming: bool,
    ) -> None:
        """``first`` steps are trained already, ``steps`` will be; ``scorer_of`` says who scores a step."""
        self._stages = stages
        self._plan = plan
        self._scorer_of = scorer_of
        self._ledger = ledger
        self._run = run
        self._steps = steps
        self._lead = lead
        self._streaming = streaming
        self._first = first
        self._begun = first
        self._under_way: dict[int, tuple[StepRecord, SimpleQueue[Handle | _End]]] = {}
        self._given_up: dict[int, list[RowId]] = {}
        # Batches of the step in hand.
        self._taken: list[Handle] = []
        self._ended = False
        self._threads = ThreadPoolExecutor(lead + 1, thread_name_prefix="feed")

    def __enter__(self) -> Self:
        self.advance(self._first)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # When the run goes on, what the engines were asked for must end before it is asked for again. After other failures
        # threads may wait for actors that hang; they end with an error when the actors are taken down.
        self._ended = True
        if isinstance(error, RECOVERABLE_ERRORS):
            self._stages.rollouts.cancel()
        self._threads.shutdown(wait=error is None or isinstance(error, RECOVERABLE_ERRORS), cancel_futures=True)

    def take(self, step: int) -> tuple[StepRecord, Iterator[Handle]]:
        """Wait for the first batch of ``step``; returns all, as they come. Raises what went wrong with them."""
        record, queue = self._under_way.pop(step)
        batches = self._remembered(_until_end(queue))
        return record, chain([next(batches)], batches)

    @property
    def taken(self) -> list[Handle]:
        """The batches of the step in hand, as far as its learner has taken them."""
        return list(self._taken)

    def given_up(self, step: int) -> list[RowId]:
        """Rows of a step, all of whose batches were taken, that were given up."""
        return self._given_up.pop(step)

    def advance(self, steps: int) -> None:
        """``steps`` steps are trained and their weights served: begin all that may begin now."""
        self._taken = []
        while self._begun < min(steps + self._lead + 1, self._steps):
            step, self._begun = self._begun, self._begun + 1
            requests = self._plan.requests(step)
            self._ledger.admit(request.row for request in requests)
            record = self._run.record(step, step % (self._lead + 1))
            queue: SimpleQueue[Handle | _End] = SimpleQueue()
            self._under_way[step] = record, queue
            self._threads.submit(self._collect, record, requests, queue)

    def _remembered(self, batches: Iterator[Handle]) -> Iterator[Handle]:
        for batch in batches:
            self._taken.append(batch)
            yield batch

    def _collect(self, record: StepRecord, requests: Sequence[RolloutRequest], queue: SimpleQueue[Handle | _End]) -> None:
        try:
            streaming = self._streaming and not self._plan.plan.refills
            given_up: list[RowId] = []
            sent: list[Handle] = []
            asked = list(requests)
            for round in itertools.count():
                sent += self._scored(record, asked, queue, streaming)
                given_up += self._stages.rollouts.given_up(asked)
                # Cancelled engines give nothing, however often they are asked.
                asked = [] if self._ended else self._refill(record.step, sent, round)
                if not asked:
                    break
            for batch in [] if streaming else sent:
                queue.put(batch)
            self._given_up[record.step] = given_up
            queue.put(_End())
        except BaseException as error:
            queue.put(_End(error))

    def _refill(self, step: int, sent: Sequence[Handle], round: int) -> list[RolloutRequest]:
        """The rows that the plan asks for beside those of a step that are scored."""
        if not self._plan.plan.refills:
            return []
        rows = outcomes(ScoredBatch.concat(self._stages.scorers.fetch(sent))) if sent else ()
        more = self._plan.refill(step, rows, round)
        self._ledger.admit(request.row for request in more)
        return more

    def _scored(
        self, record: StepRecord, requests: Sequence[RolloutRequest], queue: SimpleQueue[Handle | _End], streaming: bool
    ) -> list[Handle]:
        """A step's batches once all are scored. Rows lost with a node are asked for again, unless some were handed on."""

        version = self._scorer_of(record.step)

        def score() -> list[Handle]:
            sent = []
            answers = record.stream("rollout", self._stages.rollouts.generate(requests))
            for batch in self._stages.scorers.score(answers, version):
                sent.append(batch)
                if streaming:
                    queue.put(batch)
            with record.span("score"):
                self._stages.scorers.wait(sent)
            return sent

        return score() if streaming else retry_lost_rows(score)


@dataclass(frozen=True)
class _End:
    """The end of a step's batches, and what went wrong if it is not a good one."""

    error: BaseException | None = None


def _until_end(queue: SimpleQueue[Handle | _End]) -> Iterator[Handle]:
    while not isinstance(batch := queue.get(), _End):
        yield batch
    if batch.error is not None:
        raise batch.error
