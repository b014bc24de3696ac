"""Sealed models that score whole answers, beside the frozen value model and the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dvpo_ray.config.rewards import ModelReward
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.learning.batching import SequenceBatch
from dvpo_ray.maths.statistics import aggregate_values
from dvpo_ray.models.token_reader import ValueReader, freeze, parameter_hash
from dvpo_ray.models.value_model import ValueModelSeal, load_value_model, read_seal, refuse_reward_model
from dvpo_ray.rows import Ragged


def read_reward_seal(name: str, config: ModelReward) -> ValueModelSeal:
    """Read and verify the seal of a reward's model.

    Raises:
        ModelError: the folder is not a sealed model, a file does not match, or it has no values to take the mean of.
    """
    record = read_seal(config.folder)
    if config.score == "mean":
        refuse_reward_model(record, f"policy.rewards.{name}", config.folder, "take score = 'last'")
    return record


class RewardModel:
    """A frozen model that gives one score an answer."""

    def __init__(
        self, name: str, config: ModelReward, section: ModelSection, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Raises ModelError as ``read_reward_seal``."""
        read_reward_seal(name, config)
        model = load_value_model(Path(config.folder), dtype, section.attention, section.trust_remote_code)
        self._reader = freeze(ValueReader(model, packed=section.packed)).to(device)
        self._score = config.score

    def __call__(self, batch: SequenceBatch) -> np.ndarray:
        """Score of each answer, float32 [B]."""
        flat = self._reader(batch.input_ids, batch.attention_mask, batch.with_prompt_end).cpu().numpy()
        rows = Ragged(flat, batch.response_lengths + 1).rows()
        return np.array([aggregate_values(values[1:], self._score) for values in rows], dtype=np.float32)

    def parameter_hash(self) -> str:
        """sha256 of the parameters as they are in memory now."""
        return parameter_hash(self._reader)
