"""Checks of trainers."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ClusterSection, ModelSection
from dvpo_ray.config.trainers import TrainerSettings
from dvpo_ray.learning.trainer import STEP_METRICS, Trainer, TrainerContext, make_trainer
from dvpo_ray.testing.fakes import FakeEngines, scored_batch
from dvpo_ray.testing.settings import assert_members, check_settings
from dvpo_ray.types import BucketTargets, ScoredBatch, StepResult, WeightBucket

Batches = Callable[[int], Sequence[ScoredBatch]]


def trainer_context(settings: TrainerSettings, seed: int = 0, **policy: Any) -> TrainerContext:
    """That of a run whose handles are the scored batches themselves; ``policy`` are more of its settings."""
    tree = {"data": {"source": "checked.jsonl"}, "trainer": settings, "value_model": "checked"} | policy
    return TrainerContext("checked", ModelSection(), PolicyTraining.model_validate(tree), ClusterSection(), seed, list)


def check_trainer(
    settings: TrainerSettings, context: TrainerContext | None = None, batches: Batches | None = None, steps: int = 3
) -> None:
    """A trainer counts its steps, accounts for every row, gives engines its weights, and goes on from a checkpoint as if it had
    never stopped. It is given batches themselves as handles, so those whose work is done by actors cannot be checked in this way.

    ``batches`` gives the scored rows of each step; without it they are random.

    Raises:
        AssertionError: it does not.
    """
    check_settings(settings)
    context = trainer_context(settings) if context is None else context
    batches = _random_batches if batches is None else batches
    trainer, other = _started(context), _started(context)
    try:
        assert _digests(trainer, 0) == _digests(other, 0), "two trainers of the same context begin with different weights"
        for step in range(steps):
            _check_step(trainer, step, batches(step))
            if step == 0:
                _check_checkpoint(trainer, other)
            else:
                other.step(step, 0.1, batches(step))
        after, resumed = _digests(trainer, steps), _digests(other, steps)
        assert after == resumed, "trained on from a checkpoint, it ends with other weights: what load_checkpoint reads is not all"
        _check_saved(trainer)
        trainer.restart()
        trainer.wait_ready()
        trainer.step(0, 0.1, batches(0))
    finally:
        trainer.stop()
        other.stop()


def _random_batches(step: int) -> list[ScoredBatch]:
    return [scored_batch([3, 5, 2, 4], seed=10 * step + part, prefix=f"{step}-{part}-") for part in range(2)]


def _started(context: TrainerContext) -> Trainer:
    trainer = make_trainer(context)
    assert_members(trainer, Trainer)
    trainer.wait_ready()
    engines = FakeEngines()
    trainer.connect(engines)
    assert engines.source is not None, (
        "connect(rollouts) does not set rollouts.source, so engines that are replaced get no weights"
    )
    assert engines.source().count > 0, "rollouts.source() gives weights of no buckets"
    return trainer


def _check_step(trainer: Trainer, step: int, batches: Sequence[ScoredBatch]) -> None:
    result = trainer.step(step, 0.1, iter(batches))
    assert isinstance(result, StepResult), f"step({step}) gives {result!r:.200}, expected a StepResult"
    assert (result.step, result.version) == (step, step + 1), (
        f"step({step}) says step {result.step}, version {result.version}: expected {step} and {step + 1}, the steps trained"
    )
    given, told = sorted(row for batch in batches for row in batch.rows), sorted(outcome.row for outcome in result.rows)
    assert told == given, f"step({step}) was given rows {[*map(str, given)]} and tells of {[*map(str, told)]}: trained or dropped"
    missing = [name for name in STEP_METRICS if not math.isfinite(result.metrics.get(name, math.nan))]
    assert not missing, f"step({step}) has no finite metrics {missing}"
    rest = {name: value for name, value in result.metrics.items() if type(value) is not float}
    assert not rest, f"step({step}) has metrics that are no plain floats: {rest}"
    prompts, answers, _ = batches[0].sequences([0, 1])
    found = trainer.log_probs(prompts, answers, 1.0)
    sizes = [np.shape(one) for one in found]
    assert sizes == [one.shape for one in answers], f"log_probs gives arrays of shapes {sizes} for {[*map(len, answers)]} tokens"


def _digests(trainer: Trainer, version: int) -> list[str]:
    """What the trainer's weights are, bucket by bucket."""
    weights = trainer.weights(version)
    assert weights.version == version, f"weights({version}) says it is version {weights.version}"
    digests = []
    for index in range(weights.count):
        bucket = weights.bucket(index, BucketTargets(("checked",), 1))
        assert isinstance(bucket, WeightBucket), f"bucket({index}) gives {bucket!r:.200}, expected a WeightBucket"
        place = (bucket.version, bucket.index, bucket.count)
        assert place == (version, index, weights.count), f"bucket({index}) of weights({version}) says it is {bucket}"
        digests.append(bucket.digest)
    return digests


def _check_checkpoint(trainer: Trainer, other: Trainer) -> None:
    """``other`` becomes as the trainer is after its first step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.begin_checkpoint(folder)
        told = trainer.end_checkpoint()
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        found = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        assert told == found, (
            f"end_checkpoint() tells of the files {sorted(told)}, and wrote {sorted(found)}, or their hashes differ"
        )
        other.load_checkpoint(folder)
    assert _digests(other, 1) == _digests(trainer, 1), "load_checkpoint does not bring back the weights of the checkpoint"


def _check_saved(trainer: Trainer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "policy"
        trainer.save(str(place), {"steps": 3})
        assert place.is_dir() and any(place.iterdir()), "save(folder, facts) writes nothing into the folder"
