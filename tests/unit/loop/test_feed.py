"""The feed: order of work, how far ahead it runs, versions under random interleavings, and failures."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.updates import OffPolicySection
from dvpo_ray.errors import ActorFailedError
from dvpo_ray.learning.staleness import keep_fresh, staleness_metrics
from dvpo_ray.loop.ledger import Ledger
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Weights
from dvpo_ray.types import Ragged, RolloutRequest, ScoredBatch, ScorerVersion, ServedWeights, StepResult, Trajectory, outcomes
from tests.support.fakes import IdleStages, drive, numbered, shuffled

STEPS = 8


class InterleavedStages(IdleStages):
    """An engine whose tokens take the weights of the moment, in threads that are made to take turns at random."""

    def __init__(self, config: OffPolicySection, seed: int, missed_syncs: bool = False, fail_at: int | None = None) -> None:
        self.rollouts = self.scorers = self.learner = self
        self.config = config
        self.served = 0
        self.trained: list[ScoredBatch] = []
        self.begun: list[int] = []
        self._random = random.Random(seed)
        self._turn = threading.Lock()
        self._missed_syncs = missed_syncs
        self._fail_at = fail_at

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Trajectory]:
        """Answers in random order; with ``missed_syncs`` one of them comes from an engine that lags behind."""
        step = requests[0].row.step
        with self._turn:
            self.begun.append(step)
            order = self._random.sample(list(requests), len(requests))
        if step == self._fail_at:
            raise ActorFailedError(f"rollout-0 died while generating step {step}")
        for request in order:
            tokens = []
            for _ in range(3):
                with self._turn:
                    lag = self._random.randint(0, 3) if self._missed_syncs and request is order[0] else 0
                    tokens.append(max(0, self.served - lag))
            ids = np.array([1, 2, 3], dtype=np.int32)
            yield Trajectory(request.row, ids[:1], ids, np.zeros(3, np.float32), np.array(tokens, np.int32), "stop")

    def score(self, answers: Iterable[Trajectory], version: ScorerVersion | None = None) -> Iterator[ScoredBatch]:
        """One batch an answer, with values of 0."""
        for answer in answers:
            three, four = Ragged.of([[0.0] * 3], np.float32), Ragged.of([[0.0] * 4], np.float32)
            prompt, ids = Ragged.of([answer.prompt_ids], np.int32), Ragged.of([answer.response_ids], np.int32)
            versions = Ragged.of([answer.versions], np.int32)
            mask = Ragged.of([answer.action_mask], np.bool_)
            group = np.array([answer.group_id])
            yield ScoredBatch((answer.row,), group, prompt, ids, mask, three, versions, four, three, ("stop",))

    def wait(self, handles: Sequence[ScoredBatch]) -> None:
        """Everything is scored at once."""

    def fetch(self, handles: Iterable[ScoredBatch]) -> list[ScoredBatch]:
        """Handles are the data."""
        return list(handles)

    def value_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        """Always the same."""
        return {"value": "sealed"}

    def step(self, step: int, beta: float, scored: Iterable[ScoredBatch]) -> StepResult:
        """Keeps what the real gate lets through."""
        kept, dropped = keep_fresh(ScoredBatch.concat(list(scored)), step, self.config)
        self.trained.append(kept)
        metrics = {"kl/per_answer": 0.0} | staleness_metrics(kept, step, len(dropped))
        return StepResult(step, step + 1, (*outcomes(kept), *dropped), metrics)

    def sync(self, weights: Weights) -> ServedWeights:
        """Serves the new version from now on."""
        with self._turn:
            self.served = weights.version
        return ServedWeights(weights.version, "payload", "checksum", 0.0, 0)


def run_driver(tmp_path: Path, stages: InterleavedStages, **policy: object) -> Ledger:
    tree = {
        "run": {"output_dir": str(tmp_path), "name": "r", "overwrite": True},
        "tracking": {"tensorboard": False},
        "policy": {
            "steps": STEPS,
            "value_model": "g",
            "data": {"source": "x"},
            "rollout": {"prompts_per_step": 4},
            "off_policy": stages.config.model_dump(),
        }
        | policy,
    }
    config = build(PolicyRecipe, tree)
    run = Run(config, STEPS)
    try:
        return drive(config.policy, stages, shuffled(numbered(6), config.policy), run)
    finally:
        run.close()


@pytest.mark.parametrize("limit", [0, 1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_no_token_is_older_than_allowed(tmp_path: Path, limit: int, seed: int) -> None:
    stages = InterleavedStages(OffPolicySection(max_staleness=limit), seed)
    ledger = run_driver(tmp_path, stages)
    for step, batch in enumerate(stages.trained):
        assert len(batch) == 4, "nothing is dropped when no engine lags"
        assert step - limit <= batch.versions.flat.min() <= batch.versions.flat.max() <= step
    assert ledger.check() == {
        "ledger/admitted": 4 * STEPS,
        "ledger/trained": 4 * STEPS,
        "ledger/dead_lettered": 0,
        "ledger/in_flight": 0,
    }


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_an_engine_that_missed_syncs_are_dropped_and_counted(tmp_path: Path, seed: int) -> None:
    stages = InterleavedStages(OffPolicySection(max_staleness=2), seed, missed_syncs=True)
    ledger = run_driver(tmp_path, stages)
    for step, batch in enumerate(stages.trained):
        assert step - batch.versions.flat.min() <= 2
    books = ledger.check()
    assert books["ledger/trained"] + books["ledger/dead_lettered"] == 4 * STEPS
    assert books["ledger/dead_lettered"] > 0
    assert books["ledger/trained"] == sum(len(batch) for batch in stages.trained)


def test_without_staleness_a_step_begins_when_the_one_before_is_done(tmp_path: Path) -> None:
    stages = InterleavedStages(OffPolicySection(), 0)
    run_driver(tmp_path, stages)
    assert stages.begun == list(range(STEPS))
    assert all(set(batch.versions.flat.tolist()) == {step} for step, batch in enumerate(stages.trained))


def test_generation_runs_ahead_while_the_learner_works(tmp_path: Path) -> None:
    """With a lead of 2 the first step's training sees that two more have begun."""
    stages = InterleavedStages(OffPolicySection(max_staleness=2), 0)
    ahead = threading.Event()
    generate, step = stages.generate, stages.step

    def announce(requests: Sequence[RolloutRequest]) -> Iterator[Trajectory]:
        yield from generate(requests)
        if requests[0].row.step == 2:
            ahead.set()

    def learn(number: int, beta: float, scored: Iterable[ScoredBatch]) -> StepResult:
        assert number != 0 or ahead.wait(timeout=10), "step 2 was not generated while step 0 was trained"
        return step(number, beta, scored)

    stages.generate, stages.step = announce, learn
    run_driver(tmp_path, stages)
    assert len(stages.trained) == STEPS


@pytest.mark.parametrize("streaming", [True, False])
def test_streaming_hands_batches_on_while_others_are_generated(tmp_path: Path, streaming: bool) -> None:
    """When streaming, the last answer of a step is not generated before the learner has its first."""
    stages = InterleavedStages(OffPolicySection(), 0)
    learning = threading.Event()
    generate, step = stages.generate, stages.step
    overlapped = []

    def hold_the_last(requests: Sequence[RolloutRequest]) -> Iterator[Trajectory]:
        answers = list(generate(requests))
        yield from answers[:-1]
        overlapped.append(learning.wait(timeout=10) if streaming else learning.is_set())
        yield answers[-1]

    def learn(number: int, beta: float, scored: Iterable[ScoredBatch]) -> StepResult:
        batches = []
        for batch in scored:
            learning.set()
            batches.append(batch)
        learning.clear()
        return step(number, beta, batches)

    stages.generate, stages.step = hold_the_last, learn
    given: dict[str, object] = {
        "ppo": {"loss_normaliser": "limit"},
        "advantage": {"whitening": "scale"},
        "scorer": {"rows_per_call": 1},
    }
    run_driver(tmp_path, stages, streaming=streaming, **given)
    assert overlapped == [streaming] * STEPS
    assert [len(batch) for batch in stages.trained] == [4] * STEPS


@pytest.mark.parametrize("limit", [0, 2])
def test_a_failure_of_a_step_ahead_ends_the_run_at_that_step(tmp_path: Path, limit: int) -> None:
    stages = InterleavedStages(OffPolicySection(max_staleness=limit), 0, fail_at=3)
    with pytest.raises(ActorFailedError, match="died while generating step 3"):
        run_driver(tmp_path, stages)
    assert len(stages.trained) == 3, "what came before is trained"
