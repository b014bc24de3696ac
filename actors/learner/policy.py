"""The policy learner rank: scored rows in, one optimizer step, new weights out."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
from torch import Tensor

from actors.cluster.watchdog import watched
from actors.learner.collectives import all_reduce
from actors.learner.device_sums import DeviceSums
from actors.learner.policy_rank import PolicyRank
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ModelSection, settled
from dvpo_ray.learning.batching import share_rows
from dvpo_ray.learning.policy_update import (
    GAPS,
    NO_REWARDS,
    PreparedBatch,
    TokenBatch,
    loss,
    mean_metrics,
    mini_batch_units,
    prepare,
    units,
)
from dvpo_ray.learning.ptx import Demonstrations
from dvpo_ray.learning.staleness import check_some_left, keep_fresh, staleness_metrics
from dvpo_ray.learning.streaming import OpenStep
from dvpo_ray.learning.token_rewards import running_of, running_state
from dvpo_ray.models.lora import set_dropout
from dvpo_ray.types import Ragged, RowOutcome, ScoredBatch, StepResult, outcomes


class PolicyLearnerRank(PolicyRank):
    """One learner rank that trains the policy. It holds no value model, no reference and no reward."""

    def __init__(
        self,
        rank: int,
        world: int,
        model_folder: str,
        model: ModelSection,
        policy: PolicyTraining,
        seed: int,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        super().__init__(rank, world, model_folder, model, policy.learner, policy.lora, policy.transfer, seed)
        self.policy = policy
        self.demonstrations = demonstrations
        self._open: OpenStep | None = None
        self._scale: Tensor | None = None
        self._running = NO_REWARDS
        self._waits = policy.advantage.critic_warmup_steps

    def start(self, address: str, port: int) -> int:
        """Join the gang and load the policy; returns this process's id."""
        updates = (self.policy.steps - self._waits) * self.policy.ppo.inner_epochs * self.policy.ppo.mini_batches
        return self.load(address, port, updates, self.policy.rollout.temperature)

    @watched
    def step(self, step: int, beta: float, *batches: ScoredBatch) -> StepResult:
        """Train on the rows of all ``batches``; every rank is given all rows and works on its share.

        Raises:
            NonFiniteUpdateError: too many updates in a row had to be withheld.
            StaleRowsError: all rows are older than allowed.
        """
        began = time.monotonic()
        scored = ScoredBatch.concat(batches).in_order()
        scored, dropped = keep_fresh(scored, step, self.policy.off_policy)
        check_some_left(len(scored), len(dropped), step, self.policy.off_policy)
        prepared, metrics = self._prepare(scored, step, beta)
        self._running = prepared.running
        ppo = self.policy.ppo
        old, gap = None, dict[str, float]()
        if ppo.old_log_probs == "learner" and ppo.inner_epochs * ppo.mini_batches > 1:
            old = Ragged.of(self.log_probs(*scored.sequences(range(len(scored)))), np.float32)
        for epoch in range(ppo.inner_epochs):
            together = units(scored, self.policy.advantage)
            mini_batches = mini_batch_units(len(together), ppo.mini_batches, seed=(self.seed, step, epoch))
            for number, chosen in enumerate(mini_batches, (step * ppo.inner_epochs + epoch) * ppo.mini_batches):
                part = [together[i] for i in chosen]
                sums = self._backward(prepared, part, old, beta, number)
                rows = [row for unit in part for row in unit]
                tokens = int(scored.actions.lengths[rows].sum())
                metrics |= self._take_step(sums, tokens, self._loss_terms(rows, tokens), waits=step < self._waits)
                # Later updates see how far the policy has moved as well.
                gap = gap or {name: metrics[name] for name in GAPS}
                metrics |= gap
        return self._close(step, scored, dropped, metrics, began)

    @watched
    def accumulate(self, step: int, beta: float, batch: ScoredBatch) -> None:
        """Take in some of a step's rows, and add up the gradients of those that fill micro-batches.

        The first step of a run only collects: there is no earlier step whose advantages give the scale.
        """
        if self._open is None:
            waits = self.policy.advantage.whitening == "scale" and self._scale is None
            self._open = OpenStep(step, sys.maxsize if waits else self.world * settled(self.config.token_budget))
        kept, dropped = keep_fresh(batch, step, self.policy.off_policy)
        self._open.dropped += dropped
        ready = self._open.add(kept)
        if ready is not None:
            self._add_up(self._open, ready, beta, last=False)

    @watched
    def finish(self, step: int, beta: float) -> StepResult:
        """Train on what is left of the rows given to ``accumulate`` and take the optimizer step.

        Raises:
            NonFiniteUpdateError, StaleRowsError: as ``step``.
        """
        opened, self._open = self._open, None
        assert opened is not None and opened.step == step, f"step {step} is not open"
        rest, dropped = opened.rest(), tuple(opened.dropped)
        check_some_left(0 if rest is None else len(rest), len(dropped), step, self.policy.off_policy)
        assert rest is not None
        self._add_up(opened, rest, beta, last=True)
        scored = opened.rows().in_order()
        prepared, metrics = self._prepare(scored, step, beta)
        metrics |= self._take_step(opened.sums, scored.tokens, scored.tokens)
        self._scale = prepared.moments
        return self._close(step, scored, dropped, metrics, opened.began)

    def begin_checkpoint(self, folder: str, more: dict[str, Tensor] | None = None) -> None:
        """As for every rank, with what is known of earlier advantages and rewards."""
        scale = {} if self._scale is None else {"scale": self._scale}
        super().begin_checkpoint(folder, (more or {}) | running_state(self._running) | scale)

    def load_checkpoint(self, folder: str) -> dict[str, Tensor]:
        """As for every rank."""
        more = super().load_checkpoint(folder)
        self._scale, self._open, self._running = more.get("scale"), None, running_of(more)
        return more

    def _add_up(self, opened: OpenStep, scored: ScoredBatch, beta: float, last: bool) -> None:
        """Add the gradients of some rows of an open step."""
        prepared, _ = self._prepare(scored, opened.step, beta, self._scale)
        alone = [[row] for row in range(len(scored))]
        completed = opened.step if last else None
        for name, value in self._backward(prepared, alone, None, beta, completed).items():
            opened.sums[name] = opened.sums.get(name, 0.0) + value

    def _backward(
        self, prepared: PreparedBatch, part: list[list[int]], old: Ragged | None, beta: float, completed: int | None
    ) -> dict[str, float]:
        """Add the gradients of some rows, those of a list together; returns this rank's sums over tokens, and seconds.

        ``completed`` is the number in the run of the optimizer step whose last rows these are, None while more will come.
        """
        model = self.backend.model
        with self.busy:
            set_dropout(model, True)
            # Before the policy's: sharded optimizers reduce gradients in a step's last pass.
            sums = {} if completed is None or self.demonstrations is None else self._run_ptx(self.demonstrations, completed)
            sums |= self._run_micro_batches(prepared, part, old, beta, last=completed is not None)
            set_dropout(model, False)
            return sums

    def _run_ptx(self, demonstrations: Demonstrations, update: int) -> dict[str, float]:
        """Add the gradients of the pretraining loss of an optimizer step; returns this rank's share of its mean over tokens."""
        ptx = self.policy.ptx
        assert ptx is not None
        drawn = demonstrations.draw(ptx.rows_per_step, self.seed, update)
        prompts, responses = drawn.prompt_ids.rows(), drawn.response_ids.rows()
        lengths, tokens = drawn.prompt_ids.lengths + drawn.response_ids.lengths, drawn.response_ids.flat.size
        mine = share_rows(lengths.tolist(), self.world)[self.rank]
        mean = DeviceSums(["loss/ptx"])
        for group in self.plan(mine, lengths):
            rows = group or [0]
            batch = self.pad([prompts[i] for i in rows], [responses[i] for i in rows])
            # The model's own distribution, whatever temperature its answers are sampled at.
            share = -self.read_policy(batch, temperature=1.0)[0].sum() * (1.0 if group else 0.0) / tokens
            self.backend.backward(ptx.coefficient * share, last=False)
            mean.add({"loss/ptx": share})
        return mean.read()

    def _run_micro_batches(
        self, prepared: PreparedBatch, part: list[list[int]], old: Ragged | None, beta: float, last: bool
    ) -> dict[str, float]:
        scored = prepared.scored
        lengths = scored.prompt_ids.lengths + scored.response_ids.lengths
        # Rows that stay together count as one row of so many of the longest.
        sizes = np.array([len(unit) * lengths[unit].max() for unit in part])
        mine = share_rows([int(lengths[unit].sum()) for unit in part], self.world)[self.rank]
        normaliser = self._normaliser(scored, [row for unit in part for row in unit])
        groups = [[row for i in group for row in part[i]] for group in self.plan(mine, sizes)]
        sums, seconds = DeviceSums(), {"seconds/forward": 0.0, "seconds/backward": 0.0}
        for number, group in enumerate(groups):
            t0 = time.monotonic()
            total, parts = self._micro_loss(prepared, group, old, beta)
            t1 = time.monotonic()
            self.backend.backward(total / normaliser, last=last and number == len(groups) - 1)
            seconds["seconds/forward"] += t1 - t0
            seconds["seconds/backward"] += time.monotonic() - t1
            sums.add(parts)
        return seconds | sums.read()

    def _prepare(
        self, scored: ScoredBatch, step: int, beta: float, known: Tensor | None = None
    ) -> tuple[PreparedBatch, dict[str, float]]:
        policy = self.policy
        return prepare(scored, step, policy.advantage, policy.kl, beta, known, policy.rewards, self._running)

    def _normaliser(self, scored: ScoredBatch, rows: list[int]) -> float:
        """What the summed loss of one optimizer step is divided by."""
        if self.policy.ppo.loss_normaliser == "tokens":
            return float(self._loss_terms(rows, int(scored.actions.lengths[rows].sum())))
        return self.policy.rollout.rows_per_step * self.policy.rollout.max_new_tokens / self.policy.ppo.mini_batches

    def _loss_terms(self, rows: list[int], tokens: int) -> int:
        """How many terms the loss of rows with so many tokens has."""
        return len(rows) if self.policy.advantage.ratio_of_answers else tokens

    def _take_step(self, sums: dict[str, float], tokens: int, loss_terms: int, waits: bool = False) -> dict[str, float]:
        """The optimizer step on the gradients added up, or none while the policy ``waits`` for its critic; returns its metrics,
        equal on all ranks but for the seconds: means over tokens, and losses over their terms."""
        seconds = {name: value for name, value in sums.items() if name.startswith("seconds/")}
        summed = all_reduce({name: value for name, value in sums.items() if name not in seconds})
        metrics = mean_metrics(summed, tokens, loss_terms)
        began = time.monotonic()
        with self.busy:
            if waits:
                self.backend.discard()
                metrics |= {"optimizer/grad_norm": 0.0, "optimizer/learning_rate": 0.0}
            else:
                metrics |= self.apply_update(finite=math.isfinite(metrics["loss/policy"] + metrics.get("loss/ptx", 0.0)))
        return metrics | seconds | {"seconds/optimizer": time.monotonic() - began}

    def _close(
        self, step: int, scored: ScoredBatch, dropped: tuple[RowOutcome, ...], metrics: dict[str, float], began: float
    ) -> StepResult:
        """Sum the step up."""
        metrics |= staleness_metrics(scored, step, len(dropped)) | {"seconds/update": time.monotonic() - began}
        metrics["loss/skipped_updates"] = self.pop_skipped_count()
        self.release_free_memory()
        self.version = step + 1
        return StepResult(step, self.version, (*outcomes(scored), *dropped), metrics)

    def _micro_loss(
        self, prepared: PreparedBatch, group: list[int], old: Ragged | None, beta: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # A rank without rows left reads some for the sake of its peers: a row twice is a pair whose ratio is 1.
        rows = group or [0, 0]
        batch = self.pad(*prepared.scored.sequences(rows))
        log_probs, entropy = self.read_policy(batch)
        tokens = TokenBatch.of(prepared, rows, old, self.device)
        policy = self.policy
        total, parts = loss(log_probs, entropy, tokens, policy.advantage, policy.ppo, policy.kl, policy.off_policy, beta)
        if group:
            return total, parts
        return total * 0.0, {name: value * 0.0 for name, value in parts.items()}
