"""Adapters trained by real learners and merged by a real vLLM engine: what travels, what is served, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray as ray_module
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from actors.learner.policy_gang import PolicyLearner
from actors.rollout.pool import RolloutPool
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ClusterSection, LoraSection
from dvpo_ray.errors import ActorFailedError, CheckpointError, ModelError, WeightSyncError
from dvpo_ray.io.safetensors_writer import write_tensors
from dvpo_ray.models.folder import weights_sha256
from dvpo_ray.models.token_reader import load_policy
from dvpo_ray.types import Adapters, Ragged, ScoredBatch
from tests.support.engines import (
    ANSWER_LENGTHS,
    MODEL,
    Sent,
    answers_of,
    base_digest,
    gap,
    log_probs_of,
    requests,
    settings,
    weights_in,
    weights_of,
)
from tests.support.fakes import scored_batch
from tests.support.layer_engines import BACKENDS

pytestmark = pytest.mark.integration
RANK = 4
# Sums of inputs and outputs of the tiny model's seven linear layers, twice, as float32.
ADAPTER_BYTES = 4 * RANK * 2 * ((64 + 128) + 2 * (64 + 64) + (128 + 64) + 2 * (64 + 128) + (128 + 64))
HALF = "model.layers.1.mlp.down_proj.lora_B.default.weight"


def with_lora(lora: LoraSection, **learner: Any) -> PolicyTraining:
    config = settings()
    return config.model_copy(update={"learner": config.learner.model_copy(update=learner), "lora": lora})


def batch_of(step: int) -> ScoredBatch:
    versions = Ragged.of([np.full(n, step) for n in ANSWER_LENGTHS], np.int32)
    return replace(scored_batch(ANSWER_LENGTHS, seed=step), versions=versions)


def train(gang: PolicyLearner, step: int) -> None:
    gang.step(step, 0.1, [ray_module.put(batch_of(step))])


def check_serving(rollouts: RolloutPool, gang: PolicyLearner, version: int, base: Path, folder: Path) -> int:
    """Sync, and compare the engine's log-probs with those of the policy that the learner saves; returns the bytes sent."""
    served = rollouts.sync(gang.weights(version))
    answers = answers_of(rollouts, requests(6, seed=version))
    gang.save(str(folder), {})
    weights = weights_of(folder, 1.0)
    assert gap(answers, log_probs_of(weights, base, answers)) <= 1e-3
    assert gap(answers, log_probs_of(weights_of(base, 1.0), base, answers)) > 1e-2, "the policy is no longer its base"
    return served.bytes


def test_layers_served_side_by_side_are_merged_when_only_one_has_an_adapter(
    rollouts: RolloutPool, ray: ClusterSection, tiny_model: Path, tmp_path: Path
) -> None:
    """And an update that fails when some layers are loaded fences the engine until a whole one.

    First in this file: an engine is given adapters of the same layers, or of more, as long as it lives.
    """
    lora = LoraSection(rank=RANK, alpha=2, rslora=True, target_modules=("q_proj", "down_proj"))
    gang = PolicyLearner(str(tiny_model), MODEL, with_lora(lora, learning_rate=1e-2), ray, seed=0)
    gang.wait_ready()
    try:
        gang.connect(rollouts)
        for step in range(2):
            train(gang, step)
        check_serving(rollouts, gang, 2, tiny_model, tmp_path / "policy")
        train(gang, 2)
        half = {name: tensor for name, tensor in weights_in(gang).items() if name != HALF}
        with pytest.raises(ActorFailedError, match=r"(?s)rollout-0 failed while loading bucket 0 .*came with one"):
            rollouts.sync(Sent(3, half, adapters=Adapters(lora.scale, weights_sha256(tiny_model))))
        with pytest.raises(WeightSyncError, match="fenced: an update to version 3 did not complete"):
            answers_of(rollouts, requests(1, seed=3))
        check_serving(rollouts, gang, 4, tiny_model, tmp_path / "policy")
    finally:
        gang.stop()


@pytest.fixture(scope="module")
def others() -> dict[str, torch.Tensor]:
    """Adapters that the first gang of the next test trained."""
    return {}


@pytest.mark.parametrize(("backend", "ranks"), [("zero-0", 1), ("zero-3", 2), ("fsdp", 2)])
def test_adapters_alone_are_trained_and_travel(
    rollouts: RolloutPool,
    ray: ClusterSection,
    tiny_model: Path,
    tmp_path: Path,
    others: dict[str, torch.Tensor],
    backend: str,
    ranks: int,
) -> None:
    """Three steps: the base stays bit for bit, engines serve what the learner saves, and sharding makes no difference."""
    config = with_lora(LoraSection(rank=RANK, alpha=8), ranks=ranks, backend=BACKENDS[backend], token_budget=256)
    gang = PolicyLearner(str(tiny_model), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        gang.connect(rollouts)
        before = ray_module.get([rank.__ray_call__.remote(base_digest) for rank in gang.actors], timeout=60)
        for step in range(3):
            train(gang, step)
        assert check_serving(rollouts, gang, 10 + list(BACKENDS).index(backend), tiny_model, tmp_path / "policy") == ADAPTER_BYTES
        assert ray_module.get([rank.__ray_call__.remote(base_digest) for rank in gang.actors], timeout=60) == before
        found = weights_in(gang)
        if not others:
            others.update(found)
        assert set(found) == set(others)
        for name, tensor in found.items():
            assert torch.allclose(tensor, others[name], rtol=0, atol=1e-4), name
    finally:
        gang.stop()


@pytest.mark.parametrize(("backend", "ranks", "dtype"), [("zero-0", 1, "float32"), ("zero-3", 2, "bfloat16")])
def test_a_checkpoint_holds_adapters_alone_and_is_gone_on_with_bit_for_bit(
    ray: ClusterSection, tiny_model: Path, tmp_path: Path, backend: str, ranks: int, dtype: str
) -> None:
    """With dropout, whose random numbers a checkpoint keeps."""
    config = with_lora(
        LoraSection(rank=RANK, dropout=0.1),
        ranks=ranks,
        backend=BACKENDS[backend],
        dtype=dtype,
        token_budget=256,
    )
    gang = PolicyLearner(str(tiny_model), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        train(gang, 0)
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        gang.begin_checkpoint(str(folder))
        gang.end_checkpoint()
        assert sum(file.stat().st_size for file in folder.iterdir()) < 3 * ADAPTER_BYTES + 50_000
        train(gang, 1)
        straight = weights_in(gang)
        gang.load_checkpoint(str(folder))
        train(gang, 1)
        again = weights_in(gang)
        assert all(torch.equal(straight[name], again[name]) for name in straight)
    finally:
        gang.stop()


def test_adapters_of_another_base_are_refused(
    rollouts: RolloutPool, ray: ClusterSection, tiny_model: Path, tmp_path: Path
) -> None:
    """By an engine, which goes on serving, and by a learner that is to go on from a checkpoint."""
    model = load_policy(tiny_model, torch.float32, "eager")
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    model.save_pretrained(tmp_path / "other")
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = with_lora(LoraSection(rank=RANK))
    gang = PolicyLearner(str(tmp_path / "other"), MODEL, config, ray, seed=0)
    gang.wait_ready()
    try:
        with pytest.raises(ModelError, match="on the engine's node holds .* copy the same folder to both"):
            rollouts.sync(gang.weights(20))
        assert len(answers_of(rollouts, requests(2, seed=20))) == 2
        gang.begin_checkpoint(str(folder))
        (name,) = gang.end_checkpoint()
        with safe_open(folder / name, framework="pt") as file:
            facts = file.metadata() | {"base_sha256": weights_sha256(tiny_model)}
        (tmp_path / "claimed").mkdir()
        write_tensors(tmp_path / "claimed" / name, load_file(folder / name), facts)
        with pytest.raises(CheckpointError, match="holds adapters of a model whose weights have sha256 .* or start anew"):
            gang.load_checkpoint(str(tmp_path / "claimed"))
    finally:
        gang.stop()
