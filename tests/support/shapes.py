"""Configurations of models of known sizes, for planning: no weights."""

from __future__ import annotations

import json
from pathlib import Path

LLAMA = {"model_type": "llama", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False}
CONFIGS = {
    "0.1B": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "8B": LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


def model_of(size: str, folder: Path) -> Path:
    """A folder that planning takes for a model of this size."""
    place = folder / size
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(CONFIGS[size]))
    return place
