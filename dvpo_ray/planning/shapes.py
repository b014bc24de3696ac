"""The shape of a transformer, from its ``config.json`` alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.config.sections import LoraSection
from dvpo_ray.errors import ModelError


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on. Example: SmolLM2-135M has 30 layers, hidden size 576, 9 heads, 3 key-value heads."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any], source: str = "config.json") -> ModelShape:
        """From the keys that Hugging Face configurations of Llama-like models share.

        Raises:
            ModelError: a key is missing.
        """
        try:
            heads = config["num_attention_heads"]
            return cls(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                intermediate=config["intermediate_size"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocabulary=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise ModelError(f"{source} has no {error}: planning knows models with the keys of a Llama configuration") from error

    @classmethod
    def from_folder(cls, folder: Path) -> ModelShape:
        """From a model folder; its weights are not opened."""
        file = folder / "config.json"
        if not file.is_file():
            raise ModelError(f"{file} is missing: planning needs the configuration of the model, not its weights")
        return cls.of(json.loads(file.read_text()), str(file))

    @classmethod
    def if_known(cls, folder: Path) -> ModelShape | None:
        """As ``from_folder``, or None when the configuration has other keys."""
        try:
            return cls.from_folder(folder)
        except ModelError:
            return None

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one vocabulary-wide matrix."""
        return self.vocabulary * self.hidden

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one layer: attention projections, gated feed-forward."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: linear layers, two norms."""
        return sum(inputs * outputs for inputs, outputs in self.linear.values()) + 2 * self.hidden

    def trained_parameters(self, lora: LoraSection | None) -> int:
        """Parameters that a policy's learner trains: all, or ``rank * (inputs + outputs)`` for each layer with an adapter."""
        if lora is None:
            return self.parameters
        chosen = self.linear
        if not isinstance(lora.target_modules, str):
            wanted = {name.rpartition(".")[2] for name in lora.target_modules}
            chosen = {name: size for name, size in self.linear.items() if name in wanted}
        return self.layers * lora.rank * sum(sum(size) for size in chosen.values())

    @property
    def body_parameters(self) -> int:
        """Parameters that every token passes through, the vocabulary-wide matrices left out."""
        return self.layers * self.layer_parameters + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters of a causal language model."""
        return self.body_parameters + self.embedding_parameters * (1 if self.tied else 2)

    @property
    def value_parameters(self) -> int:
        """Parameters of a value model: one output in place of the vocabulary."""
        return self.body_parameters + self.embedding_parameters + self.hidden

    def kv_bytes(self, tokens: float, element: int = 2) -> float:
        """Keys and values of so many tokens, in bytes."""
        return tokens * 2 * self.layers * self.kv_heads * self.head_dim * element

    def forward_flops(self, tokens: float, context: float, logits: float = 0.0) -> float:
        """Floating-point operations of a forward pass over ``tokens`` that see ``context`` tokens on average.

        Two operations a parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), attention over the
        context, and the vocabulary for ``logits`` of the tokens.
        """
        attention = 4 * self.layers * self.heads * self.head_dim * context
        return tokens * (2 * self.body_parameters + attention) + logits * 2 * self.embedding_parameters
