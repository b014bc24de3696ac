"""Parameters of models with experts, by their configurations' own numbers, against those that were published and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.config.sections import LoraSection
from dvpo_ray.planning import ModelShape
from dvpo_ray.planning.shapes import Experts, Latent

MIXTRAL_8X7B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
DEEPSEEK_V3 = {
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "vocab_size": 129280,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
QWEN3_30B_A3B = {
    "num_hidden_layers": 48,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
OLMOE_7B = {
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50304,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [(MIXTRAL_8X7B, 46.7, 12.9), (DEEPSEEK_V3, 671.0, 37.6), (QWEN3_30B_A3B, 30.5, 3.4), (OLMOE_7B, 6.9, 1.3)],
    ids=["Mixtral-8x7B", "DeepSeek-V3", "Qwen3-30B-A3B", "OLMoE-1B-7B"],
)
def test_every_expert_is_counted_and_a_token_passes_a_few(config: dict[str, Any], total: float, active: float) -> None:
    """As their authors say, in billions (Qwen3: 3.3 active, DeepSeek-V3: 37, without the embedding)."""
    shape = ModelShape.of(config)
    assert round(shape.parameters / 1e9, 1) == total
    assert round(shape.read_parameters(1) / 1e9, 1) == active


def test_mixtral_by_hand() -> None:
    """A layer: projections 2 x 4096^2 + 2 x 4096 x 1024, experts 8 x 3 x 4096 x 14336, router 4096 x 8, two norms."""
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 8 * 3 * 4096 * 14336 + 4096 * 8 + 2 * 4096
    shape = ModelShape.of(MIXTRAL_8X7B)
    assert shape.parameters == 32 * layer + 4096 + 2 * 32000 * 4096 == 46_702_792_704
    assert shape.read_parameters(1) == pytest.approx(shape.parameters - 32 * 6 * 3 * 4096 * 14336)
    assert shape.forward_flops(1, 0) == 2 * shape.active_body_parameters


def test_a_pass_reads_the_experts_that_its_tokens_choose() -> None:
    shape = ModelShape.of(MIXTRAL_8X7B)
    assert shape.read_parameters(2) - shape.read_parameters(1) == pytest.approx(32 * 1.5 * 3 * 4096 * 14336), (
        "2 of 8, and 2 x 6/8"
    )
    assert shape.read_parameters(1000) == pytest.approx(shape.parameters)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({}, 0),
        ({"first_k_dense_replace": 3}, 3),
        ({"decoder_sparse_step": 2}, 16),
        ({"mlp_only_layers": [0, 5]}, 2),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, 16),
    ],
)
def test_some_layers_have_no_experts(changes: dict[str, Any], dense: int) -> None:
    assert Experts.of(MIXTRAL_8X7B | changes) == Experts(8, 2, 14336, 0, dense)


def test_compressed_keys_and_values() -> None:
    shape = ModelShape.of(DEEPSEEK_V3)
    assert shape.latent == Latent(1536, 512, 128, 64, 128)
    assert shape.kv_bytes(1) == 2 * 61 * (512 + 64)
    assert shape.experts == Experts(256, 8, 2048, 2048, 3)


def test_experts_get_no_adapters() -> None:
    lora = LoraSection(rank=16)
    assert ModelShape.of(MIXTRAL_8X7B).trained_parameters(lora) == 32 * 16 * (2 * 8192 + 2 * 5120)


CLASSES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 32, "mlp_only_layers": [0]},
    "Olmoe": {"num_experts": 4},
    "GraniteMoe": {"num_local_experts": 4},
    "DeepseekV3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    },
}


@pytest.mark.parametrize("name", CLASSES)
def test_counts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Norms of queries, keys and compressed parts, and the routers' corrections, are left out: 1% of so small a model."""
    import torch
    import transformers

    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        **sizes | {"num_key_value_heads": 4, "num_experts_per_tok": 2} | CLASSES[name]
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert ModelShape.from_folder(tmp_path).parameters == pytest.approx(model.num_parameters(), rel=0.01)
