"""The shape of a transformer, from its ``config.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.config.sections import LoraSection
from dvpo_ray.errors import ModelError

Sizes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Experts:
    """Feed-forward networks of which a router chooses a few for each token (Shazeer et al. 2017, arXiv 1701.06538).

    Every token passes ``shared`` numbers besides; ``dense_layers`` layers have one network of the model's own width instead.
    Example: Mixtral-8x7B has ``Experts(8, 2, 14336, 0, 0)``, DeepSeek-V3 ``Experts(256, 8, 2048, 2048, 3)``.
    """

    count: int
    active: int
    intermediate: int
    shared: int
    dense_layers: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Experts | None:
        """From the keys of Mixtral, Qwen, OLMoE, Granite, DeepSeek and Jamba; None for a model without experts."""
        count = next((config[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if config.get(key)), 0)
        if count < 2:
            return None
        width = config.get("moe_intermediate_size") or config["intermediate_size"]
        shared = config.get("shared_expert_intermediate_size") or config.get("shared_intermediate_size")
        sparse = sum(_is_sparse(layer, config) for layer in range(config["num_hidden_layers"]))
        return cls(
            count=count,
            active=config.get("num_experts_per_tok") or 1,
            intermediate=width,
            shared=shared or (config.get("n_shared_experts") or 0) * width,
            dense_layers=config["num_hidden_layers"] - sparse,
        )


def _is_sparse(layer: int, config: Mapping[str, Any]) -> bool:
    """Whether a layer (from 0) of a model with experts has them."""
    if layer < (config.get("first_k_dense_replace") or 0) or layer in (config.get("mlp_only_layers") or ()):
        return False
    period = config.get("expert_layer_period") or 1
    return (layer + 1) % (config.get("decoder_sparse_step") or 1) == 0 and layer % period == (
        config.get("expert_layer_offset") or 0
    ) % period


@dataclass(frozen=True)
class Latent:
    """Attention over compressed keys and values (DeepSeek-V2, arXiv 2405.04434, section 2.1): ranks of queries (0: they are not
    compressed) and of keys and values, and sizes of a head's parts without and with positions, and of its values."""

    query_rank: int
    rank: int
    plain: int
    rotary: int
    value: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Latent | None:
        """From the keys of DeepSeek-V2 and V3; None for a model that keeps its keys and values."""
        if not config.get("kv_lora_rank"):
            return None
        parts = config["kv_lora_rank"], config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
        return cls(config.get("q_lora_rank") or 0, *parts)


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
    experts: Experts | None = None
    latent: Latent | None = None

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
                experts=Experts.of(config),
                latent=Latent.of(config),
            )
        except KeyError as error:
            raise ModelError(f"{source} has no {error}: planning knows models with the keys of a Llama configuration") from error

    @classmethod
    def from_folder(cls, folder: Path) -> ModelShape:
        """From a model folder; its weights are not opened."""
        file = folder / "config.json"
        if not file.is_file():
            raise ModelError(f"{file} is missing: planning needs the configuration of the model, not its weights")
        config = json.loads(file.read_text())
        # Models of text and pictures keep what is about text in a part of their config.
        return cls.of(config | (config.get("text_config") or {}), str(file))

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
    def attention(self) -> Sizes:
        """(inputs, outputs) of the projections of one layer's attention."""
        if self.latent is None:
            query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
            found = {"q_proj": (self.hidden, query), "k_proj": (self.hidden, key), "v_proj": (self.hidden, key)}
            return found | {"o_proj": (query, self.hidden)}
        latent, query = self.latent, self.heads * (self.latent.plain + self.latent.rotary)
        if latent.query_rank:
            found = {"q_a_proj": (self.hidden, latent.query_rank), "q_b_proj": (latent.query_rank, query)}
        else:
            found = {"q_proj": (self.hidden, query)}
        return found | {
            "kv_a_proj_with_mqa": (self.hidden, latent.rank + latent.rotary),
            "kv_b_proj": (latent.rank, self.heads * (latent.plain + latent.value)),
            "o_proj": (self.heads * latent.value, self.hidden),
        }

    @property
    def feed_forward(self) -> Sizes:
        """(inputs, outputs) of one layer's gated feed-forward network, where there are no experts."""
        return {
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def dense_layers(self) -> int:
        """Layers without experts."""
        return self.layers if self.experts is None else self.experts.dense_layers

    def trained_parameters(self, lora: LoraSection | None) -> int:
        """Parameters that a policy's learner trains: all, or ``rank * (inputs + outputs)`` for each layer with an adapter, which
        experts do not get."""
        if lora is None:
            return self.parameters
        found = 0
        for sizes, layers in ((self.attention, self.layers), (self.feed_forward, self.dense_layers)):
            chosen = sizes
            if not isinstance(lora.target_modules, str):
                wanted = {name.rpartition(".")[2] for name in lora.target_modules}
                chosen = {name: size for name, size in sizes.items() if name in wanted}
            found += layers * lora.rank * sum(sum(size) for size in chosen.values())
        return found

    def _body(self, experts_read: float) -> float:
        """Parameters without the vocabulary-wide matrices, ``experts_read`` experts of each layer counted: projections, networks,
        routers, two norms a layer and the last one."""
        found: float = self.layers * (_weights(self.attention) + 2 * self.hidden) + self.hidden
        found += self.dense_layers * _weights(self.feed_forward)
        if self.experts is not None:
            networks = 3 * self.hidden * (experts_read * self.experts.intermediate + self.experts.shared)
            found += (self.layers - self.dense_layers) * (networks + self.hidden * self.experts.count)
        return found

    @property
    def body_parameters(self) -> int:
        """All parameters but the vocabulary-wide matrices."""
        return int(self._body(self.experts.count if self.experts else 0))

    @property
    def active_body_parameters(self) -> int:
        """Parameters that one token passes through, the vocabulary-wide matrices left out."""
        return int(self._body(self.experts.active if self.experts else 0))

    @property
    def _vocabulary_parameters(self) -> int:
        return self.embedding_parameters * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All parameters of a causal language model."""
        return self.body_parameters + self._vocabulary_parameters

    def read_parameters(self, tokens: float) -> float:
        """Parameters that a pass over so many tokens reads: of experts those that a router which prefers none is expected to
        choose for any of them."""
        if self.experts is None:
            return self.parameters
        chosen = self.experts.count * (1 - (1 - self.experts.active / self.experts.count) ** tokens)
        return self._body(chosen) + self._vocabulary_parameters

    @property
    def value_parameters(self) -> int:
        """Parameters of a value model: one output in place of the vocabulary."""
        return self.body_parameters + self.embedding_parameters + self.hidden

    def kv_bytes(self, tokens: float, element: int = 2) -> float:
        """Keys and values of so many tokens, in bytes."""
        kept = 2 * self.kv_heads * self.head_dim if self.latent is None else self.latent.rank + self.latent.rotary
        return tokens * self.layers * kept * element

    def forward_flops(self, tokens: float, context: float, logits: float = 0.0) -> float:
        """Floating-point operations of a forward pass over ``tokens`` that see ``context`` tokens on average.

        Two operations a parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1), attention over the
        context, and the vocabulary for ``logits`` of the tokens.
        """
        latent = self.latent
        head = 2 * self.head_dim if latent is None else latent.plain + latent.rotary + latent.value
        attention = 2 * self.layers * self.heads * head * context
        return tokens * (2 * self.active_body_parameters + attention) + logits * 2 * self.embedding_parameters


def _weights(sizes: Sizes) -> int:
    return sum(inputs * outputs for inputs, outputs in sizes.values())
