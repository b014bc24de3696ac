"""A discrete-event simulation of the pipeline: rows, engines, scorers, learner, staleness and failures.

What a closed formula leaves out: answers of different lengths, engines that run dry while the last answers finish, batches
that wait for a scorer, and actors that die and come back.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Cluster:
    """What is simulated. Times in seconds.

    An engine with n answers under way adds one token to each in ``decode_base + n * decode_per_row``. A batch of rows takes
    ``score_per_row`` a row on a scorer; a step's rows take ``learn`` seconds on the learner ranks together. An engine fails
    after ``mean_time_to_failure`` on average (0: never) and is back ``restart`` later; its rows start over.
    """

    engines: int
    rows_at_once: int
    decode_base: float
    decode_per_row: float
    prefill_per_row: float
    scorers: int
    rows_per_call: int
    score_per_row: float
    learn: float
    sync: float
    rows_per_step: int
    answer_mean: float
    answer_max: int
    answer_spread: float = 0.5
    max_staleness: int = 0
    mean_time_to_failure: float = 0.0
    restart: float = 60.0


@dataclass
class Outcome:
    """Seconds of every step, the share of time each stage's processes stood idle, and failures met."""

    steps: list[float]
    idle: dict[str, float]
    failures: int
    rows_restarted: int

    @property
    def seconds_per_step(self) -> float:
        """Mean over the steps after the first quarter, which fills the pipeline."""
        steady = self.steps[len(self.steps) // 4 :] or self.steps
        return float(np.mean(steady))


@dataclass
class _Engine:
    """Rows, each (step, tokens still needed), wait or are under way; ``since`` when the tokens under way began.

    ``stamp`` makes events foreseen in an earlier state void.
    """

    waiting: deque[tuple[int, int]] = field(default_factory=deque)
    active: list[list[int]] = field(default_factory=list)
    stamp: int = 0
    since: float = 0.0
    down: bool = False


class _Simulation:
    """The state and its events, in order of time."""

    def __init__(self, cluster: Cluster, steps: int, seed: int) -> None:
        self.cluster = cluster
        self.total = steps
        self.random = np.random.default_rng(seed)
        self.events: list[tuple[float, int, str, tuple[int, ...]]] = []
        self.count = 0
        self.now = 0.0
        self.engines = [_Engine() for _ in range(cluster.engines)]
        self.begun = 0
        self.trained = 0
        self.learning = False
        self.unscored: dict[int, int] = {}
        self.to_score: dict[int, int] = {}
        self.generated: dict[int, int] = {}
        self.batches: deque[tuple[int, int]] = deque()
        self.free_scorers = cluster.scorers
        self.busy = {"rollout": 0.0, "score": 0.0, "learn": 0.0}
        self.ends: list[float] = []
        self.failures = 0
        self.restarted = 0

    def run(self) -> Outcome:
        """Until the last step is trained."""
        if self.cluster.mean_time_to_failure:
            for index in range(self.cluster.engines):
                self._push(self.random.exponential(self.cluster.mean_time_to_failure), "fail", index)
        self._begin_steps()
        while self.trained < self.total:
            self.now, _, kind, facts = heapq.heappop(self.events)
            getattr(self, f"_on_{kind}")(*facts)
        cluster = self.cluster
        processes = {"rollout": cluster.engines, "score": cluster.scorers, "learn": 1}
        idle = {name: 1.0 - self.busy[name] / (count * self.now) for name, count in processes.items()}
        return Outcome(list(np.diff([0.0, *self.ends])), idle, self.failures, self.restarted)

    def _push(self, after: float, kind: str, *facts: int) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + after, self.count, kind, facts))

    def _begin_steps(self) -> None:
        """Hand the rows of all steps that may begin to the engines, in turn."""
        cluster = self.cluster
        while self.begun < min(self.trained + cluster.max_staleness + 1, self.total):
            step, self.begun = self.begun, self.begun + 1
            self.unscored[step] = self.generated[step] = cluster.rows_per_step
            self.to_score[step] = 0
            lengths = self._lengths(cluster.rows_per_step)
            for index, engine in enumerate(self.engines):
                engine.waiting.extend((step, int(n)) for n in lengths[index :: cluster.engines])
        for index in range(cluster.engines):
            self._advance(index)

    def _lengths(self, rows: int) -> np.ndarray:
        """Log-normal answer lengths of the wanted mean, cut at the limit."""
        spread = self.cluster.answer_spread
        lengths = self.random.lognormal(np.log(self.cluster.answer_mean) - spread**2 / 2, spread, rows)
        return np.clip(np.round(lengths), 1, self.cluster.answer_max)

    def _advance(self, index: int) -> None:
        """Bring an engine up to date, fill it with rows, and note when its next answer ends."""
        engine, cluster = self.engines[index], self.cluster
        if engine.down:
            return
        begun = max(0.0, engine.since - self.now)
        if engine.active:
            seconds = self._token_seconds(engine)
            elapsed = max(0.0, self.now - engine.since)
            tokens = int(elapsed / seconds + 1e-6)
            begun -= elapsed - tokens * seconds
            self.busy["rollout"] += tokens * seconds
            for row in engine.active:
                row[1] -= tokens
        ended = [row[0] for row in engine.active if row[1] <= 0]
        engine.active = [row for row in engine.active if row[1] > 0]
        for step in ended:
            self._generated(step)
        entered = 0
        while engine.waiting and len(engine.active) < cluster.rows_at_once:
            engine.active.append(list(engine.waiting.popleft()))
            entered += 1
        self.busy["rollout"] += entered * cluster.prefill_per_row
        engine.stamp += 1
        engine.since = self.now + begun + entered * cluster.prefill_per_row
        if engine.active:
            until = engine.since + min(row[1] for row in engine.active) * self._token_seconds(engine)
            self._push(until - self.now, "tokens", index, engine.stamp)

    def _token_seconds(self, engine: _Engine) -> float:
        return self.cluster.decode_base + self.cluster.decode_per_row * len(engine.active)

    def _generated(self, step: int) -> None:
        self.generated[step] -= 1
        self.to_score[step] += 1
        if self.to_score[step] == self.cluster.rows_per_call or self.generated[step] == 0:
            self.batches.append((step, self.to_score[step]))
            self.to_score[step] = 0
            self._score()

    def _score(self) -> None:
        while self.batches and self.free_scorers:
            step, rows = self.batches.popleft()
            self.free_scorers -= 1
            seconds = rows * self.cluster.score_per_row
            self.busy["score"] += seconds
            self._push(seconds, "scored", step, rows)

    def _learn(self) -> None:
        if not self.learning and self.unscored.get(self.trained) == 0:
            self.learning = True
            self.busy["learn"] += self.cluster.learn
            self._push(self.cluster.learn, "learned")

    def _on_tokens(self, index: int, stamp: int) -> None:
        """An answer of an engine ends, unless the engine changed since this was foreseen."""
        if self.engines[index].stamp == stamp:
            self._advance(index)

    def _on_scored(self, step: int, rows: int) -> None:
        self.free_scorers += 1
        self.unscored[step] -= rows
        self._score()
        self._learn()

    def _on_learned(self) -> None:
        """Engines stand still while they take the new weights."""
        for index, engine in enumerate(self.engines):
            self._advance(index)
            engine.since += self.cluster.sync
            engine.stamp += 1
        self._push(self.cluster.sync, "trained")

    def _on_trained(self) -> None:
        self.trained += 1
        self.learning = False
        self.ends.append(self.now)
        self._begin_steps()
        self._learn()

    def _on_fail(self, index: int) -> None:
        """An engine dies: its rows wait again and start over when it is back."""
        engine = self.engines[index]
        self._advance(index)
        self.failures += 1
        self.restarted += len(engine.active)
        lengths = self._lengths(len(engine.active))
        engine.waiting.extendleft((row[0], int(n)) for row, n in zip(engine.active, lengths, strict=True))
        engine.active, engine.down = [], True
        engine.stamp += 1
        self._push(self.cluster.restart, "back", index)

    def _on_back(self, index: int) -> None:
        self.engines[index].down = False
        self._advance(index)
        self._push(self.random.exponential(self.cluster.mean_time_to_failure), "fail", index)


def simulate(cluster: Cluster, steps: int = 40, seed: int = 0) -> Outcome:
    """Play ``steps`` steps through."""
    return _Simulation(cluster, steps, seed).run()
