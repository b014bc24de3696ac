"""The online critic's learner rank: values of scored rows out, then one update on their returns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from actors.cluster.watchdog import watched
from actors.learner.collectives import all_reduce
from actors.learner.device_sums import DeviceSums
from actors.learner.rank import Rank
from actors.learner.saving import save_pretrained
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.learning.batching import SequenceBatch, share_rows
from dvpo_ray.learning.critic_update import CriticBatch, critic_loss
from dvpo_ray.learning.policy_update import mini_batch_units
from dvpo_ray.learning.staleness import keep_fresh
from dvpo_ray.learning.token_rewards import running_of, running_state, token_rewards
from dvpo_ray.maths.running import RunningMoments
from dvpo_ray.models.packaged import folder_of
from dvpo_ray.models.token_reader import ValueReader
from dvpo_ray.models.value_model import load_value_model, new_value_model, read_seal
from dvpo_ray.types import Ragged, ScoredBatch


class CriticRank(Rank):
    """One learner rank that trains the critic of ``ppo``."""

    role = "critic"
    rate_key = "policy.advantage.critic.learning_rate"

    def __init__(self, rank: int, world: int, model_folder: str, model: ModelSection, policy: PolicyTraining, seed: int) -> None:
        critic = policy.advantage.online_critic
        assert critic is not None, f"{policy.advantage.type} has no critic"
        self.settings, self._lam = critic
        self.policy = policy
        section = policy.learner.model_copy(update={"learning_rate": self.settings.learning_rate})
        super().__init__(rank, world, model_folder, model, section, seed)
        self._running = RunningMoments()
        self._batch: CriticBatch | None = None

    def start(self, address: str, port: int) -> int:
        """Join the gang and load the critic; returns this process's id.

        Raises:
            ModelError: ``critic.initial`` is no sealed value model.
        """
        pid = self.join(address, port)
        section, initial = self.model_section, self.settings.initial
        if initial is None:
            model = new_value_model(self.folder, section.attention, self.dtype, section.trust_remote_code)
        else:
            sealed = folder_of(initial)
            read_seal(sealed)
            model = load_value_model(sealed, self.dtype, section.attention, section.trust_remote_code)
        reader = ValueReader(model.eval(), share_prefix=self.share_prefix, packed=section.packed)
        ppo = self.policy.ppo
        self.wrap(reader, self.policy.steps * ppo.inner_epochs * ppo.mini_batches)
        return pid

    @watched
    def values(self, step: int, beta: float, *batches: ScoredBatch) -> ScoredBatch:
        """The rows of a step with the critic's values in place of the frozen ones; ``learn`` trains on them next."""
        scored = ScoredBatch.concat(batches).in_order()

        def read(batch: SequenceBatch) -> tuple[Tensor, np.ndarray]:
            return self._read(batch), batch.response_lengths + 1

        with self.busy:
            found = self.gathered(self.read_share(scored.prompt_ids.rows(), scored.response_ids.rows(), read))
        scored = replace(scored, values=Ragged.of([found[i] for i in range(len(scored))], np.float32))
        fresh, _ = keep_fresh(scored, step, self.policy.off_policy)
        if len(fresh):
            policy = self.policy
            earned = token_rewards(fresh, policy.advantage, policy.kl, beta, policy.rewards, self._running)
            self._running = earned.moments
            self._batch = CriticBatch.of(fresh, earned.rewards_bt, earned.mask_bt, self._lam)
        return scored

    def values_with_ack(self, step: int, beta: float, *batches: ScoredBatch) -> tuple[ScoredBatch, bool]:
        """``values``, and that they are there: who must know does not need to fetch the batch."""
        return self.values(step, beta, *batches), True

    @watched
    def learn(self, step: int) -> dict[str, float]:
        """Train on the rows whose values were asked for last; metrics are equal on all ranks.

        Raises:
            NonFiniteUpdateError: too many updates in a row had to be withheld.
        """
        batch, self._batch = self._batch, None
        assert batch is not None, f"step {step}: no values were asked for"
        ppo, metrics = self.policy.ppo, batch.metrics()
        for epoch in range(ppo.inner_epochs):
            for rows in mini_batch_units(len(batch.scored), ppo.mini_batches, seed=(self.seed, step, epoch)):
                states = int(batch.returns.lengths[rows].sum())
                with self.busy:
                    total = all_reduce({"loss": self._backward(batch, [int(row) for row in rows], states)})["loss"] / states
                    update = self.apply_update(finite=math.isfinite(total))
                metrics |= {"critic/loss": total, "critic/grad_norm": update["optimizer/grad_norm"]}
        self.release_free_memory()
        return metrics | {"critic/skipped_updates": self.pop_skipped_count()}

    def begin_checkpoint(self, folder: str, more: dict[str, Tensor] | None = None) -> None:
        """As for every rank, with what is known of earlier rewards."""
        super().begin_checkpoint(folder, (more or {}) | running_state(self._running))

    def load_checkpoint(self, folder: str) -> dict[str, Tensor]:
        """As for every rank."""
        more = super().load_checkpoint(folder)
        self._running, self._batch = running_of(more), None
        return more

    @watched
    def save(self, folder: str) -> None:
        """Write the critic as a value model, without a seal: it was trained on what one policy wrote."""
        save_pretrained(self.backend, Path(folder), self.folder, self.model_section.trust_remote_code)

    def stop(self) -> None:
        """Leave the gang."""
        self.leave()

    def _backward(self, batch: CriticBatch, rows: list[int], states: int) -> float:
        """Add the gradients of this rank's share of some rows; returns its loss summed over states."""
        scored, summed = batch.scored, DeviceSums(["loss"])
        lengths = scored.prompt_ids.lengths + scored.response_ids.lengths
        mine = [rows[i] for i in share_rows([int(lengths[row]) for row in rows], self.world)[self.rank]]
        groups = self.plan(mine, lengths)
        for number, group in enumerate(groups):
            chosen = group or [0]
            values = self._read(self.pad(*scored.sequences(chosen)))
            loss = critic_loss(values, batch, chosen, self.settings.clip_range)
            loss = loss if group else loss * 0.0
            self.backend.backward(loss / states, last=number == len(groups) - 1)
            summed.add({"loss": loss})
        return summed.read()["loss"]

    def _read(self, batch: SequenceBatch) -> Tensor:
        """The values of every row's states of interest and its last, one after another."""
        return self.backend(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
