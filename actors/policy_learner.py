"""The policy learner rank: scored rows in, one optimizer step, new weights out."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import torch.distributed as dist
from torch import Tensor

from actors.deepspeed_engine import all_reduce
from actors.policy_rank import PolicyRank
from actors.watchdog import watched
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.learning.batching import share_rows
from dvpo_ray.learning.policy_update import PreparedBatch, TokenBatch, loss, mean_metrics, mini_batch_rows, prepare
from dvpo_ray.learning.staleness import check_some_left, keep_fresh, staleness_metrics
from dvpo_ray.learning.streaming import OpenStep
from dvpo_ray.models.lora import set_dropout
from dvpo_ray.rows import Ragged, ScoredBatch, StepResult


class PolicyLearnerRank(PolicyRank):
    """One DeepSpeed rank that trains the policy. It holds no value model, no reference and no reward."""

    def __init__(
        self,
        rank: int,
        world: int,
        model_folder: str,
        model: ModelSection,
        policy: PolicyTraining,
        seed: int,
    ) -> None:
        super().__init__(rank, world, model_folder, model, policy.learner, policy.lora, policy.transfer, seed)
        self.policy = policy
        self._open: OpenStep | None = None
        self._scale: Tensor | None = None

    def start(self, address: str, port: int) -> int:
        """Join the gang and load the policy; returns this process's id."""
        updates = self.policy.steps * self.policy.ppo.inner_epochs * self.policy.ppo.mini_batches
        return self.load(address, port, updates, self.policy.rollout.temperature)

    @watched
    def step(self, step: int, beta: float, *batches: ScoredBatch) -> StepResult:
        """Train on the rows of all ``batches``; every rank is given all rows and works on its share.

        Raises:
            NonFiniteUpdateError: too many updates in a row had to be withheld.
            StaleRowsError: all rows are older than allowed.
        """
        began = time.monotonic()
        scored = _in_order(ScoredBatch.concat(batches))
        scored, dropped = keep_fresh(scored, step, self.policy.off_policy)
        check_some_left(len(scored), len(dropped), step, self.policy.off_policy)
        prepared, metrics = self._prepare(scored, step, beta)
        ppo = self.policy.ppo
        old = None
        if ppo.old_log_probs == "learner" and ppo.inner_epochs * ppo.mini_batches > 1:
            old = self._log_probs(scored)
        for epoch in range(ppo.inner_epochs):
            for rows in mini_batch_rows(len(scored), ppo.mini_batches, seed=(self.seed, step, epoch)):
                sums = self._backward(prepared, rows, old, beta, last=True)
                metrics |= self._take_step(sums, int(scored.response_ids.lengths[rows].sum()))
        return self._close(step, scored, dropped, metrics, began)

    @watched
    def accumulate(self, step: int, beta: float, batch: ScoredBatch) -> None:
        """Take in some of a step's rows, and add up the gradients of those that fill micro-batches.

        The first step of a run only collects: there is no earlier step whose advantages give the scale.
        """
        if self._open is None:
            waits = self.policy.advantage.whitening == "scale" and self._scale is None
            self._open = OpenStep(step, sys.maxsize if waits else self.world * self.config.token_budget)
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
        scored = _in_order(opened.rows())
        prepared, metrics = self._prepare(scored, step, beta)
        metrics |= self._take_step(opened.sums, scored.tokens)
        self._scale = prepared.moments
        return self._close(step, scored, dropped, metrics, opened.began)

    def begin_commit(self, folder: str, more: dict[str, Tensor] | None = None) -> None:
        """As for every rank, with the scale of streamed advantages."""
        scale = {} if self._scale is None else {"scale": self._scale}
        super().begin_commit(folder, (more or {}) | scale)

    def load_commit(self, folder: str) -> dict[str, Tensor]:
        """As for every rank."""
        more = super().load_commit(folder)
        self._scale, self._open = more.get("scale"), None
        return more

    def _add_up(self, opened: OpenStep, scored: ScoredBatch, beta: float, last: bool) -> None:
        """Add the gradients of some rows of an open step."""
        prepared, _ = self._prepare(scored, opened.step, beta, self._scale)
        for name, value in self._backward(prepared, np.arange(len(scored)), None, beta, last).items():
            opened.sums[name] = opened.sums.get(name, 0.0) + value

    def _backward(
        self, prepared: PreparedBatch, rows: np.ndarray, old: Ragged | None, beta: float, last: bool
    ) -> dict[str, float]:
        """Add the gradients of some rows; returns this rank's sums over tokens, and seconds."""
        model = self.engine.engine.module.model
        with self.busy:
            set_dropout(model, True)
            sums = self._run_micro_batches(prepared, rows, old, beta, last)
            set_dropout(model, False)
            return sums

    def _run_micro_batches(
        self, prepared: PreparedBatch, rows: np.ndarray, old: Ragged | None, beta: float, last: bool
    ) -> dict[str, float]:
        scored = prepared.scored
        lengths = scored.prompt_ids.lengths + scored.response_ids.lengths
        mine = [int(rows[i]) for i in share_rows([int(lengths[r]) for r in rows], self.world)[self.rank]]
        normaliser = self._normaliser(int(scored.response_ids.lengths[rows].sum()))
        groups = self.plan(mine, lengths)
        sums = {"seconds/forward": 0.0, "seconds/backward": 0.0}
        for number, group in enumerate(groups):
            t0 = time.monotonic()
            total, parts = self._micro_loss(prepared, group, old, beta)
            t1 = time.monotonic()
            self.engine.backward(total / normaliser, last=last and number == len(groups) - 1)
            sums["seconds/forward"] += t1 - t0
            sums["seconds/backward"] += time.monotonic() - t1
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return sums

    def _prepare(
        self, scored: ScoredBatch, step: int, beta: float, known: Tensor | None = None
    ) -> tuple[PreparedBatch, dict[str, float]]:
        return prepare(scored, step, self.policy.advantage, self.policy.kl, beta, known, self.policy.rewards)

    def _normaliser(self, tokens: int) -> float:
        """What the summed loss of one optimizer step is divided by."""
        if self.policy.ppo.loss_normaliser == "tokens":
            return float(tokens)
        return self.policy.rollout.rows_per_step * self.policy.rollout.max_new_tokens / self.policy.ppo.mini_batches

    def _take_step(self, sums: dict[str, float], tokens: int) -> dict[str, float]:
        """The optimizer step on the gradients added up; returns its metrics, equal on all ranks but for the seconds."""
        seconds = {name: value for name, value in sums.items() if name.startswith("seconds/")}
        metrics = mean_metrics(all_reduce({name: value for name, value in sums.items() if name not in seconds}), tokens)
        began = time.monotonic()
        with self.busy:
            metrics |= self.apply_update(finite=math.isfinite(metrics["loss/policy"]))
        return metrics | seconds | {"seconds/optimizer": time.monotonic() - began}

    def _close(
        self, step: int, scored: ScoredBatch, dropped: tuple[str, ...], metrics: dict[str, float], began: float
    ) -> StepResult:
        """Sum the step up."""
        metrics |= staleness_metrics(scored, step, len(dropped)) | {"seconds/update": time.monotonic() - began}
        metrics["loss/skipped_updates"] = float(self.skipped)
        self.release_free_memory()
        self.version = step + 1
        return StepResult(step, self.version, scored.row_ids, metrics, dropped)

    def _micro_loss(
        self, prepared: PreparedBatch, group: list[int], old: Ragged | None, beta: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows = group or [0]
        batch = self.pad(*self._sequences(prepared.scored, rows))
        log_probs, entropy = self.read_policy(batch)
        tokens = TokenBatch.of(prepared, rows, old, self.device)
        total, parts = loss(log_probs, entropy, tokens, self.policy.ppo, self.policy.kl, self.policy.off_policy, beta)
        if group:
            return total, parts
        return total * 0.0, {name: value * 0.0 for name, value in parts.items()}

    def _log_probs(self, scored: ScoredBatch) -> Ragged:
        """The current policy's log-probs of all rows, each rank computing its share."""
        found = self.token_log_probs(scored.prompt_ids.rows(), scored.response_ids.rows())
        if self.world > 1:
            gathered: list[dict[int, np.ndarray]] = [{} for _ in range(self.world)]
            dist.all_gather_object(gathered, found)
            found = {row: values for part in gathered for row, values in part.items()}
        return Ragged.of([found[i] for i in range(len(scored))], np.float32)

    @staticmethod
    def _sequences(scored: ScoredBatch, rows: list[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        return scored.prompt_ids.take(rows).rows(), scored.response_ids.take(rows).rows()


def _in_order(scored: ScoredBatch) -> ScoredBatch:
    """Rows sorted by id: answers arrive in any order, training must not depend on it."""
    return scored.take(sorted(range(len(scored)), key=lambda i: scored.row_ids[i]))
