"""What learner ranks share that train a policy: its model, the weights that engines get, checkpoints and the saved folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from actors.cluster.watchdog import watched
from actors.learner.rank import Rank
from actors.learner.saving import save_pretrained
from actors.weights.broadcast import Sender
from actors.weights.buckets import SharedBuffer, layout, plan_buckets, write_bucket
from dvpo_ray.config.sections import (
    BROADCAST,
    SHARED_MEMORY,
    LearnerSection,
    LoraSection,
    ModelSection,
    TransferSection,
)
from dvpo_ray.errors import WeightSyncError
from dvpo_ray.learning.batching import SequenceBatch
from dvpo_ray.models.folder import weights_sha256
from dvpo_ray.models.lora import ADAPTERS, add_adapters, set_dropout
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from dvpo_ray.types import Adapters, BucketTargets, TensorSpec, WeightBucket


class PolicyRank(Rank):
    """One learner rank that holds a policy. ``version`` is the number of steps it was trained."""

    def __init__(
        self,
        rank: int,
        world: int,
        model_folder: str,
        model: ModelSection,
        learner: LearnerSection,
        lora: LoraSection | None,
        transfer: TransferSection,
        seed: int,
    ) -> None:
        super().__init__(rank, world, model_folder, model, learner, seed)
        self.lora = lora
        self.version = 0
        self._bucket_bytes = transfer.bucket_mib * 2**20
        self._memory = SharedBuffer()
        self._patience_s = transfer.broadcast_timeout_s
        self._sender: Sender | None = None
        self._names: StoredNames
        self._buckets: list[tuple[TensorSpec, ...]] = []
        self._adapters: Adapters | None = None

    def load(self, address: str, port: int, updates: int, temperature: float = 1.0, with_entropy: bool = True) -> int:
        """Join the gang and load the policy, which will be given ``updates`` optimizer steps; returns this process's id."""
        pid = self.join(address, port)
        section, folder = self.model_section, self.folder
        model = load_policy(folder, self.dtype, section.attention, section.trust_remote_code)
        if self.lora is not None:
            add_adapters(model, self.lora, folder)
            self.base_sha256 = weights_sha256(folder)
            self._adapters = Adapters(self.lora.scale, self.base_sha256)
        reader = PolicyReader(model, temperature, with_entropy, share_prefix=self.share_prefix, packed=section.packed)
        self.wrap(reader, updates)
        # Gradient checkpointing has put the whole model into training mode.
        set_dropout(model, False)
        self._names = StoredNames(model, self.backend.shapes(), adapters=self.lora is not None)
        self._buckets = plan_buckets(self._names.specs, self._bucket_bytes)
        return pid

    @watched
    def bucket_count(self) -> tuple[int, int]:
        """The weights' version, which is the number of steps trained, and the buckets in which they travel."""
        return self.version, len(self._buckets)

    @watched
    def bucket(self, version: int, held: int, index: int, way: str, receivers: BucketTargets) -> tuple[WeightBucket | None, bool]:
        """One bucket of the current weights, or adapters, on its ``way`` (a backend of ``transfer``), and that it was made.

        Rank 0 gives it, all take part in gathering. The memory is used again for the next bucket: engines must have loaded this
        one before.

        Raises:
            WeightSyncError: the weights are no longer those of ``held`` trained steps.
        """
        if held != self.version:
            raise WeightSyncError(f"weights of step {held} were asked for, the learner has gone on to {self.version}")
        specs = self._buckets[index]
        with self.backend.whole(self._names.sources(specs)) as sources:
            if self.rank != 0:
                return None, True
            size = layout(specs)[1]
            memory = self._room(way, size, receivers)
            digest = write_bucket(memory, specs, self._names.stored(sources))
        bucket = WeightBucket(version, index, len(self._buckets), specs, size, digest, adapters=self._adapters)
        return replace(bucket, **self._where(way, memory)), True

    def _room(self, way: str, size: int, receivers: BucketTargets) -> Tensor:
        """Memory for a bucket [bytes] (uint8)."""
        if way == BROADCAST:
            if self._sender is None:
                self._sender = Sender(ray.util.get_node_ip_address(), self.device, self._patience_s)
            return self._sender.buffer(size, receivers)
        return self._memory.bytes(size) if way == SHARED_MEMORY else torch.empty(size, dtype=torch.uint8)

    def _where(self, way: str, memory: Tensor) -> dict[str, Any]:
        """The fields of a bucket that say where its bytes are."""
        if way == BROADCAST:
            assert self._sender is not None
            return {"channel": self._sender.send(memory)}
        return {"path": self._memory.path} if way == SHARED_MEMORY else {"data": memory.numpy()}

    def begin_checkpoint(self, folder: str, more: dict[str, Tensor] | None = None) -> None:
        """As for every rank, with the weights' version."""
        super().begin_checkpoint(folder, (more or {}) | {"version": torch.tensor(self.version)})

    def load_checkpoint(self, folder: str) -> dict[str, Tensor]:
        """As for every rank."""
        more = super().load_checkpoint(folder)
        self.version = int(more["version"])
        return more

    @watched
    def save(self, folder: str, facts: dict[str, object]) -> None:
        """Write the policy as an ordinary Hugging Face folder with a manifest, and adapters beside it."""
        target, trust = Path(folder), self.model_section.trust_remote_code
        adapters = None if self.lora is None else target.with_name(ADAPTERS)
        save_pretrained(self.backend, target, self.folder, trust, facts, adapters)

    def stop(self) -> None:
        """Leave the gang and give shared memory back."""
        self._memory.close()
        if self._sender is not None:
            self._sender.close()
        self.leave()

    @watched
    def log_probs(
        self,
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        masks: Sequence[np.ndarray] | None = None,
        temperature: float | None = None,
    ) -> list[np.ndarray]:
        """The current policy's log-probs of the tokens of all responses (of those that it wrote, where ``masks`` say which), at
        ``temperature`` or else that of the rollouts; each rank computes its share."""
        found = self.gathered(self.token_log_probs(prompts, responses, masks, temperature))
        return [found[i] for i in range(len(responses))]

    def token_log_probs(
        self,
        prompts: Sequence[np.ndarray],
        responses: Sequence[np.ndarray],
        masks: Sequence[np.ndarray] | None = None,
        temperature: float | None = None,
    ) -> dict[int, np.ndarray]:
        """The same of this rank's share of responses, by index."""

        def read(batch: SequenceBatch) -> tuple[Tensor, np.ndarray]:
            return self.read_policy(batch, temperature)[0], batch.response_lengths

        return self.read_share(prompts, responses, read, masks)

    def read_policy(self, batch: SequenceBatch, temperature: float | None = None) -> tuple[Tensor, Tensor]:
        """Log-probs of the response tokens, and entropies [N], at ``temperature`` or else that of the rollouts."""
        return self.backend(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets, temperature)
