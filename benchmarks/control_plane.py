"""What the driver itself costs: the real driver, feed, ledger and run record over stages that only pretend to work.

First stages that take no time: rows a second, and the driver's own CPU time a row. Then stages that take known times: a step
should last as long as their sum without staleness, and as long as the slowest of them with it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import table, write_section
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.loop.driver import Driver
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Weights
from dvpo_ray.types import RolloutRequest, RowId, ScorerVersion, ServedWeights, StepResult
from tests.support.fakes import IdleStages, shuffled, trained

ROLLOUTS, SCORERS, RANKS = 256, 64, 64
ROWS_PER_CALL = 16
PROMPT_TOKENS = 200


@dataclass(frozen=True)
class Seconds:
    """How long the stages pretend to work on one step."""

    rollout: float = 0.0
    score: float = 0.0
    learn: float = 0.0
    sync: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Rows on a scorer until a moment (``time.monotonic``)."""

    rows: list[RowId]
    done: float


class SimulatedStages(IdleStages):
    """256 engines whose answers end evenly over a step, 64 scorers that take batches in turn, and 64 ranks."""

    def __init__(self, seconds: Seconds) -> None:
        self.rollouts = self.scorers = self.learner = self
        self._seconds = seconds
        self._never = threading.Event()
        self._free = [0.0] * SCORERS

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[RowId]:
        """One answer of each engine at a time, until all are there."""
        began, waves = time.monotonic(), -(-len(requests) // ROLLOUTS)
        for wave in range(waves):
            self._until(began + self._seconds.rollout * (wave + 1) / waves)
            for request in requests[wave * ROLLOUTS : (wave + 1) * ROLLOUTS]:
                yield request.row

    def score(self, answers: Iterable[RowId], version: ScorerVersion | None = None) -> Iterator[Batch]:
        """Batches, each for ``seconds.score`` on the scorer that is free first."""
        rows: list[RowId] = []
        for answer in answers:
            rows.append(answer)
            if len(rows) == ROWS_PER_CALL:
                yield self._send(rows)
                rows = []
        if rows:
            yield self._send(rows)

    def wait(self, handles: Sequence[Batch]) -> None:
        """Until the last is scored."""
        self._until(max(batch.done for batch in handles))

    def fetch(self, handles: Iterable[Batch]) -> list[Batch]:
        """Not needed here."""
        raise NotImplementedError

    def value_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        """Always the same."""
        return {"value": "sealed"}

    def step(self, step: int, beta: float, scored: Iterable[Batch]) -> StepResult:
        """Learns for the time given."""
        rows = trained(row for batch in scored for row in batch.rows)
        self._until(time.monotonic() + self._seconds.learn)
        metrics = {"kl/per_answer": 0.0} | {f"metric/{i}": float(i) for i in range(40)}
        return StepResult(step, step + 1, rows, metrics)

    def sync(self, weights: Weights) -> ServedWeights:
        """Syncs for the time given."""
        self._until(time.monotonic() + self._seconds.sync)
        return ServedWeights(weights.version, "payload", "checksum", 0.0, 0)

    def _send(self, rows: list[RowId]) -> Batch:
        scorer = min(range(SCORERS), key=lambda i: self._free[i])
        self._free[scorer] = max(self._free[scorer], time.monotonic()) + self._seconds.score
        return Batch(rows, self._free[scorer])

    def _until(self, moment: float) -> None:
        self._never.wait(max(0.0, moment - time.monotonic()))


def drive(seconds: Seconds, rows: int, steps: int, staleness: int) -> tuple[float, float]:
    """(wall seconds a step, CPU seconds of this process a row)."""
    with tempfile.TemporaryDirectory() as folder:
        tree = {
            "run": {"output_dir": folder, "name": "r"},
            "tracking": {"tensorboard": False},
            "policy": {
                "steps": steps,
                "value_model": "g",
                "data": {"source": "x"},
                "rollout": {"prompts_per_step": rows, "actors": ROLLOUTS},
                "scorer": {"actors": SCORERS},
                "learner": {"ranks": RANKS},
                "off_policy": {"max_staleness": staleness},
            },
        }
        recipe = build(PolicyRecipe, tree)
        prompts = [EncodedPrompt(f"p{i}", "", tuple(range(PROMPT_TOKENS)), f"p{i}") for i in range(rows)]
        run = Run(recipe, steps)
        wall, cpu = time.monotonic(), time.process_time()
        stages = SimulatedStages(seconds)
        checkpointer = Checkpointer(CheckpointStore(run.folder / "checkpoints"), stages, run, every=0, steps=recipe.policy.steps)
        Driver(recipe.policy, stages, shuffled(prompts, recipe.policy), run, checkpointer).train()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        run.close()
        assert (Path(folder) / "r" / "metrics.jsonl").read_text().count("\n") == steps
    return wall / steps, cpu / (rows * steps)


def main() -> None:
    """Measure and write."""
    rows = 4096
    step, cpu = drive(Seconds(), rows, 16, 0)
    body = f"{ROLLOUTS} engines, {SCORERS} scorers, {RANKS} ranks, all simulated; {rows} rows a step.\n\n"
    body += f"Stages that take no time: {rows / step:,.0f} rows/s, {1000 * cpu:.3f} ms of driver CPU a row.\n\n"
    seconds = Seconds(rollout=1.0, score=0.05, learn=1.2, sync=0.1)
    lines = []
    for staleness in (0, 1, 2):
        found, _ = drive(seconds, rows, 16, staleness)
        # Scorers keep up with generation, so that one batch is left to score after the last answer.
        ideal = seconds.rollout + seconds.score + seconds.learn + seconds.sync
        if staleness:
            ideal = max(seconds.rollout + seconds.score, seconds.learn + seconds.sync)
        lines.append([staleness, found, ideal, f"{found / ideal:.2f}"])
    body += f"Stages that take {seconds.rollout} s, {seconds.score} s a batch, {seconds.learn} s and {seconds.sync} s:\n\n"
    body += table(["max_staleness", "s/step", "ideal", "ratio"], lines)
    write_section("control_plane", "Control plane", "python -m benchmarks.control_plane", body)
    print(body)


if __name__ == "__main__":
    main()
