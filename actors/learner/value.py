"""The value learner rank: labelled pairs and answers in, a value model out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.cluster.watchdog import watched
from actors.learner.collectives import all_reduce
from actors.learner.device_sums import DeviceSums
from actors.learner.rank import Rank
from actors.learner.saving import save_pretrained
from dvpo_ray.config.recipes import ValueTraining
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.config.targets import TargetConfig
from dvpo_ray.learning import value_update
from dvpo_ray.learning.batching import SequenceBatch
from dvpo_ray.learning.pairs import LabelledAnswer, Unit
from dvpo_ray.models.token_reader import ValueReader
from dvpo_ray.models.value_model import new_value_model


class ValueLearnerRank(Rank):
    """One learner rank that trains the value model on pairs of answers (chosen, rejected) and on answers in none."""

    def __init__(
        self, rank: int, world: int, model_folder: str, model: ModelSection, value: ValueTraining, seed: int, total_steps: int
    ) -> None:
        super().__init__(rank, world, model_folder, model, value.learner, seed)
        self.value = value
        self.total_steps = total_steps

    def start(self, address: str, port: int) -> int:
        """Join the gang and grow the value model from the base model; returns this process's id."""
        pid = self.join(address, port)
        section = self.model_section
        model = new_value_model(self.folder, section.attention, self.dtype, section.trust_remote_code)
        reader = ValueReader(model.eval(), share_prefix=self.share_prefix, packed=section.packed)
        self.wrap(reader, self.total_steps * self.value.inner_epochs)
        return pid

    @watched
    def step(self, units: Sequence[Unit], target: TargetConfig) -> dict[str, float]:
        """Train on one batch (every rank is given all of it, and takes its share); metrics are equal on all ranks."""
        batches = [[units[i] for i in group] for group in self.plan_units(units)]
        answers = sum(map(len, units))
        goals: list[Tensor | None] = [None] * len(batches)
        metrics: dict[str, float] = {}
        for _ in range(self.value.inner_epochs):
            sums = DeviceSums(["loss/value", "value/mean"])
            for number, group in enumerate(batches):
                total, goals[number], values = self._loss(group, goals[number], target)
                self.backend.backward(total / answers, last=number == len(batches) - 1)
                if group:
                    sums.add({"loss/value": total})
                    sums.add({"value/mean": values.mean()}, times=sum(map(len, group)))
            metrics = {name: value / answers for name, value in all_reduce(sums.read()).items()}
            metrics |= self.apply_update(finite=math.isfinite(metrics["loss/value"]))
        metrics["loss/skipped_updates"] = self.pop_skipped_count()
        self.release_free_memory()
        return metrics

    @watched
    def values(self, answers: Sequence[LabelledAnswer]) -> dict[int, np.ndarray]:
        """q_0..q_T of this rank's share of ``answers``, by index."""

        def read(batch: SequenceBatch) -> tuple[Tensor, np.ndarray]:
            return self._values(batch), batch.response_lengths + 1

        return self.read_share([a.prompt_ids for a in answers], [a.response_ids for a in answers], read)

    @watched
    def save(self, folder: str) -> None:
        """Write the value model's folder, to be sealed."""
        save_pretrained(self.backend, Path(folder), self.folder, self.model_section.trust_remote_code)

    def stop(self) -> None:
        """Leave the gang."""
        self.leave()

    def _loss(self, units: list[Unit], goals: Tensor | None, target: TargetConfig) -> tuple[Tensor, Tensor, Tensor]:
        """Loss sum of pairs, or of answers in none, the targets (made on the first pass, then held fixed) and the values,
        detached."""
        if not units:
            example = LabelledAnswer(np.array([0]), np.array([0]), 1.0)
            values = self._values(self.pad_answers([example, example]))
            return values.sum() * 0.0, values.detach(), values.detach()
        answers = [answer for unit in units for answer in unit]
        batch = self.pad_answers(answers)
        values = self._values(batch)
        if goals is None:
            labels = torch.tensor([answer.label for answer in answers], device=self.device)
            goals = value_update.targets(values, batch.response_lengths, labels, target)
        total = value_update.loss(values, goals, batch.response_lengths, target, in_pairs=len(units[0]) == 2)
        return total, goals, values.detach()

    def _values(self, batch: SequenceBatch) -> Tensor:
        return self.backend(batch.input_ids, batch.attention_mask, batch.with_prompt_end)
