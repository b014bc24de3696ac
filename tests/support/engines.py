"""What tests of engines and learners share: settings of the tiny model, requests, and what the two say of the same tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import ray as ray_module
import torch

from actors.learner.policy_gang import WeightSource
from actors.rollout.pool import RolloutPool
from actors.weights.buckets import SharedBuffer, bucket_bytes, layout, plan_buckets, read_bucket, write_bucket
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import (
    DataSection,
    EngineSection,
    ModelSection,
    RolloutSection,
    TransferSection,
)
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from dvpo_ray.types import Adapters, BucketTargets, RolloutRequest, RowId, TensorSpec, Trajectory, WeightBucket
from tests.support.decided import learner_section, scorer_section

ANSWER_LENGTHS = [5, 9, 3, 12, 7, 1]
MODEL = ModelSection(path="tiny", attention="eager")


def settings(**rollout: Any) -> PolicyTraining:
    engine = EngineSection(dtype="float32", max_model_len=256, max_num_seqs=32, kv_cache_mib=64)
    return PolicyTraining(
        steps=4,
        value_model="none",
        data=DataSection(source="x", max_prompt_tokens=200),
        rollout=RolloutSection(engine=engine, max_new_tokens=24, **rollout),
        scorer=scorer_section(rows_per_call=4),
        learner=learner_section(learning_rate=1e-3),
    )


def requests(count: int, prompt_tokens: int = 6, seed: int = 0) -> list[RolloutRequest]:
    rng = np.random.default_rng(seed)
    return [
        RolloutRequest(
            RowId(0, i, f"r{seed}", 0), tuple(int(t) for t in rng.integers(2, 300, prompt_tokens + i % 3)), seed=100 + i
        )
        for i in range(count)
    ]


def answers_of(pool: RolloutPool, asked: list[RolloutRequest]) -> list[Trajectory]:
    found = {answer.row: answer for answer in ray_module.get(list(pool.generate(asked)), timeout=120)}
    return [found[request.row] for request in asked]


def weights_of(folder: Path, scale: float) -> dict[str, torch.Tensor]:
    model = load_policy(folder, torch.float32, "eager")
    return {name: p.detach() * scale for name, p in model.named_parameters()}


class Sent:
    """Weights or adapters sent by the test itself, in buckets of at most ``limit`` bytes; ``damaged`` says how often a bucket
    is."""

    def __init__(
        self,
        version: int,
        tensors: dict[str, torch.Tensor],
        limit: int = 2**30,
        damaged: dict[int, int] | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self.version = version
        self._tensors = tensors
        self._buckets = plan_buckets([TensorSpec.of(name, t) for name, t in tensors.items()], limit)
        self._damaged = damaged or {}
        self._adapters = adapters
        self._memory = SharedBuffer()

    @property
    def count(self) -> int:
        return len(self._buckets)

    def bucket(self, index: int, receivers: BucketTargets) -> WeightBucket:
        specs = self._buckets[index]
        size = layout(specs)[1]
        memory = self._memory.bytes(size)
        digest = write_bucket(memory, specs, self._tensors)
        if self._damaged.get(index, 0):
            self._damaged[index] -= 1
            memory[size // 2] ^= 1
        return WeightBucket(self.version, index, self.count, specs, size, digest, self._memory.path, adapters=self._adapters)


def log_probs_of(weights: dict[str, torch.Tensor], folder: Path, answers: list[Trajectory]) -> list[np.ndarray]:
    model = load_policy(folder, torch.float32, "eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    batch = pad_sequences([a.prompt_ids for a in answers], [a.response_ids for a in answers])
    with torch.inference_mode():
        flat, _ = PolicyReader(model)(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    return np.split(flat.numpy(), np.cumsum(batch.response_lengths)[:-1])


def gap(answers: list[Trajectory], expected: list[np.ndarray]) -> float:
    return float(np.abs(np.concatenate([a.log_probs for a in answers]) - np.concatenate(expected)).max())


def weights_in(gang: WeightSource) -> dict[str, torch.Tensor]:
    """What the learner holds, whichever way it sends it."""
    transfer, gang.transfer = gang.transfer, TransferSection(backend="shared_memory")
    weights = gang.weights(0)
    found = {}
    for index in range(weights.count):
        bucket = ray_module.get(weights.bucket(index, BucketTargets((), 1)), timeout=60)
        found |= {name: tensor.clone() for name, tensor in read_bucket(bytearray(bucket_bytes(bucket)), bucket.tensors)}
    gang.transfer = transfer
    return found


def base_digest(rank: Any) -> str:
    """sha256 of a learner rank's frozen parameters, computed in its process; all ranks take part."""
    frozen = [name for name, p in rank.backend.model.named_parameters() if not p.requires_grad]
    assert frozen
    digest = hashlib.sha256()
    with rank.backend.whole(frozen) as parameters:
        for name, parameter in parameters.items():
            digest.update(name.encode() + parameter.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
