"""Sealed models of the tiny model, for tests that need a real one and train none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dvpo_ray.data import template_hash, tokenizer_hash
from dvpo_ray.models.value_model import new_value_model, seal


def sealed_as(kind: str, folder: Path, base: Path, tokenizer: Any, seed: int) -> Path:
    """A sealed model with a random head."""
    model = new_value_model(base, "eager", torch.float32)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seal(
        folder,
        base_model="tiny",
        tokenizer_sha256=tokenizer_hash(tokenizer),
        chat_template_sha256=template_hash(tokenizer),
        data_sha256="0",
        pairs=2,
        target={"type": kind},
        value_mean=0.0,
        value_std=1.0,
        held_out_pairs=1,
        held_out_accuracy={"mean": 1.0, "last": 1.0},
    )
    return folder
