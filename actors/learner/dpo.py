"""The DPO learner rank: preference pairs in, a policy out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from actors.cluster.watchdog import watched
from actors.learner.collectives import all_reduce
from actors.learner.device_sums import DeviceSums
from actors.learner.policy_rank import PolicyRank
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.learning.dpo_update import answer_scores, loss
from dvpo_ray.learning.pairs import LabelledAnswer, Pair
from dvpo_ray.models.lora import set_dropout


class DpoLearnerRank(PolicyRank):
    """One learner rank that trains the policy on pairs of answers (chosen, rejected). It holds no reference model."""

    def __init__(
        self, rank: int, world: int, model_folder: str, model: ModelSection, dpo: DpoTraining, seed: int, total_steps: int
    ) -> None:
        super().__init__(rank, world, model_folder, model, dpo.learner, dpo.lora, dpo.transfer, seed)
        self.dpo = dpo
        self.total_steps = total_steps

    def start(self, address: str, port: int) -> int:
        """Join the gang and load the policy; returns this process's id."""
        return self.load(address, port, self.total_steps, with_entropy=False)

    @watched
    def scores(self, answers: Sequence[LabelledAnswer]) -> dict[int, float]:
        """Log-probs of this rank's share of whole ``answers`` under the current policy, by index. Before the first step they are
        the reference's."""
        with self.busy:
            found = self.token_log_probs([a.prompt_ids for a in answers], [a.response_ids for a in answers])
        how = np.mean if self.dpo.average_log_probs else np.sum
        return {i: float(how(log_probs, dtype=np.float64)) for i, log_probs in found.items()}

    @watched
    def step(self, pairs: Sequence[Pair], reference: np.ndarray) -> dict[str, float]:
        """Train on one batch of pairs (every rank is given all, and takes its share); metrics are equal on all ranks.

        Args:
            pairs: P of them.
            reference: scores of their answers by the reference [P, 2].

        Raises:
            NonFiniteUpdateError: too many updates in a row had to be withheld.
        """
        with self.busy:
            sums = self._backward(pairs, reference)
            metrics = {name: value / len(pairs) for name, value in all_reduce(sums).items()}
            metrics |= self.apply_update(finite=math.isfinite(metrics["loss/dpo"]))
        metrics["loss/skipped_updates"] = self.pop_skipped_count()
        self.release_free_memory()
        self.version += 1
        return metrics

    def _backward(self, pairs: Sequence[Pair], reference: np.ndarray) -> dict[str, float]:
        """Add the gradients of this rank's share; returns its sums over pairs."""
        model = self.backend.model
        groups, sums = self.plan_pairs(pairs), DeviceSums(["loss/dpo"])
        set_dropout(model, True)
        for number, group in enumerate(groups):
            total, parts = self._micro_loss(pairs, reference, group)
            self.backend.backward(total / len(pairs), last=number == len(groups) - 1)
            sums.add(parts)
        set_dropout(model, False)
        return sums.read()

    def _micro_loss(self, pairs: Sequence[Pair], reference: np.ndarray, group: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss sum and metrics of some pairs; of none, those of the first times 0, for the sake of this rank's peers."""
        rows = group or [0]
        batch = self.pad_answers([answer for i in rows for answer in pairs[i]])
        scores = answer_scores(self.read_policy(batch)[0], batch.response_lengths, self.dpo.average_log_probs)
        given = torch.from_numpy(reference[rows].reshape(-1)).to(scores)
        total, parts = loss(scores, given, self.dpo)
        if group:
            return total, parts
        return total * 0.0, {name: value * 0.0 for name, value in parts.items()}
