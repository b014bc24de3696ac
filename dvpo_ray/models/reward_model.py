"""Sealed models that score whole answers, beside the frozen value model and the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.config.rewards import ModelReward
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.learning.batching import SequenceBatch
from dvpo_ray.maths.statistics import aggregate_values
from dvpo_ray.models.packaged import folder_of
from dvpo_ray.models.reader_check import frozen_reader
from dvpo_ray.models.token_reader import ValueReader, parameter_hash
from dvpo_ray.models.value_model import ValueModelSeal, load_value_model, read_seal, refuse_reward_model
from dvpo_ray.types import Ragged


def read_reward_seal(name: str, config: ModelReward, folder: Path) -> ValueModelSeal:
    """Read and verify the seal of a reward's model, which is in ``folder`` here.

    Raises:
        ModelError: the folder is not a sealed model, a file does not match, or it has no values to take the mean of.
    """
    record = read_seal(folder)
    if config.score == "mean":
        refuse_reward_model(record, f"policy.rewards.{name}", config.folder, "take score = 'last'")
    return record


class RewardModel:
    """A frozen model that gives one score an answer.

    Bradley-Terry trains a reward model's value at the end of sequence and no other, so an answer that was cut is read as one that
    ends at its last token (``end_cut_answers``). A value model is trained at every token and reads answers as they are.
    """

    def __init__(
        self, name: str, config: ModelReward, section: ModelSection, dtype: torch.dtype, device: torch.device | str, end_id: int
    ) -> None:
        """Raises ModelError as ``read_reward_seal`` and ``frozen_reader``."""
        folder = folder_of(config.folder)
        self._ends_cut = read_reward_seal(name, config, folder).is_reward_model and config.end_cut_answers
        self._end_id = end_id
        model = load_value_model(folder, dtype, section.attention, section.trust_remote_code)
        self._reader = frozen_reader(ValueReader(model, section.share_prefix != "off", section.packed), device)
        self._score = config.score

    def __call__(self, batch: SequenceBatch, cut_b: np.ndarray) -> np.ndarray:
        """Score of each answer, float32 [B]; ``cut_b`` [B] tells which were cut at the limit."""
        input_ids = with_end(batch, cut_b, self._end_id) if self._ends_cut else batch.input_ids
        flat = self._reader(input_ids, batch.attention_mask, batch.with_prompt_end).cpu().numpy()
        rows = Ragged(flat, batch.response_lengths + 1).rows()
        return np.array([aggregate_values(values[1:], self._score) for values in rows], dtype=np.float32)

    def parameter_hash(self) -> str:
        """sha256 of the parameters as they are in memory now."""
        return parameter_hash(self._reader)


def with_end(batch: SequenceBatch, cut_b: np.ndarray, end_id: int) -> Tensor:
    """Token ids [B, L] of a batch in which the answers ``cut_b`` [B] end with ``end_id`` instead of their last token."""
    last_b = batch.with_prompt_end[torch.from_numpy(np.cumsum(batch.response_lengths + 1) - 1).to(batch.input_ids.device)]
    input_ids = batch.input_ids.clone()
    input_ids.view(-1)[last_b[torch.from_numpy(cut_b).to(last_b.device)]] = end_id
    return input_ids
