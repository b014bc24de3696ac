"""The hash by which scorers know a frozen value model."""

from __future__ import annotations

from pathlib import Path

import torch

from dvpo_ray.models.token_reader import ValueReader, parameter_hash
from dvpo_ray.models.value_model import load_value_model, read_seal


def value_parameters_sha256(folder: str | Path, dtype: str, trust_remote_code: bool = False) -> str:
    """sha256 of a sealed value model's parameters as scorers hold them in memory, in their number type (``scorer.dtype``).

    It is what a ``ScorerVersion`` announces. The model is loaded and its files are verified.

    Raises:
        ModelError: the folder holds no sealed value model, or was changed.
    """
    read_seal(folder)
    return parameter_hash(ValueReader(load_value_model(Path(folder), getattr(torch, dtype), "eager", trust_remote_code)))
