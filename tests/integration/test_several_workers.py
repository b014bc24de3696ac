"""Weights to several engines, and to the workers that share one: by broadcast and through shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray as ray_module

from actors.learner.policy_gang import PolicyLearner
from actors.rollout.pool import RolloutPool
from dvpo_ray.config.sections import ClusterSection, TransferSection
from tests.support.engines import ANSWER_LENGTHS, MODEL, answers_of, gap, log_probs_of, requests, settings, weights_in
from tests.support.fakes import scored_batch

# Three and two engines' starts.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.fresh]

BROADCAST = TransferSection(backend="broadcast", bucket_mib=1, broadcast_timeout_s=5)


def learner(ray: ClusterSection, tiny_model: Path) -> PolicyLearner:
    return PolicyLearner(str(tiny_model), MODEL, settings().model_copy(update={"transfer": BROADCAST}), ray, seed=0)


def train(gang: PolicyLearner, seed: int) -> None:
    gang.step(0, 0.1, [ray_module.put(scored_batch(ANSWER_LENGTHS, seed=seed))])


def agree(pool: RolloutPool, gang: PolicyLearner, tiny_model: Path) -> bool:
    answers = answers_of(pool, requests(6, seed=40))
    return gap(answers, log_probs_of(weights_in(gang), tiny_model, answers)) <= 1e-3


def test_a_broadcast_goes_on_without_an_engine_that_dies_and_to_the_one_in_its_place(
    ray: ClusterSection, tiny_model: Path
) -> None:
    pool, gang = RolloutPool(str(tiny_model), MODEL, settings(actors=2).rollout, ray, seed=0), learner(ray, tiny_model)
    try:
        gang.wait_ready()
        pool.wait_ready()
        gang.connect(pool)
        pool.sync(gang.weights(1))
        ray_module.kill(pool._engines[1].actor)
        pool.sync(gang.weights(2))
        assert {engine.served.version for engine in pool._engines if engine.served} == {2}
        with pool._members:
            assert pool._members.wait_for(lambda: len(pool._engines) == 2 or pool._failure, timeout=120)
        train(gang, 0)
        pool.sync(gang.weights(3))
        assert [engine.served.version for engine in pool._engines if engine.served] == [3, 3]
        assert agree(pool, gang, tiny_model)
    finally:
        pool.stop()
        gang.stop()


def test_two_workers_of_one_engine_are_given_the_same_weights_either_way(ray: ClusterSection, tiny_model: Path) -> None:
    rollout = settings().rollout
    rollout = rollout.model_copy(update={"engine": rollout.engine.model_copy(update={"tensor_parallel": 2})})
    pool, gang = RolloutPool(str(tiny_model), MODEL, rollout, ray, seed=0), learner(ray, tiny_model)
    try:
        gang.wait_ready()
        pool.wait_ready()
        gang.connect(pool)
        for version, transfer in enumerate((BROADCAST, TransferSection(backend="shared_memory"))):
            gang.transfer = transfer
            train(gang, version)
            pool.sync(gang.weights(version + 1))
            assert agree(pool, gang, tiny_model)
    finally:
        pool.stop()
        gang.stop()
