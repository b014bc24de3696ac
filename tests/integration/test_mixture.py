"""Mixtures of experts on a real engine, which serves what their folders hold and what they are sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.rollout_pool import RolloutPool
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.rows import Answer
from tests.engines import MODEL, Sent, answers_of, gap, log_probs_of, requests, settings, weights_of

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"num_experts": 4, "moe_intermediate_size": 64, "decoder_sparse_step": 1, "norm_topk_prob": True},
    "Mixtral": {"num_local_experts": 4},
}


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixture_is_served_as_it_is_sent(family: str, ray: ClusterSection, tokenizer: Any, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family])
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    pool = RolloutPool(str(tmp_path), MODEL, settings().rollout, ray, seed=0)
    try:
        pool.wait_ready()
        assert gap_to(stored, tmp_path, answers_of(pool, requests(6))) <= 1e-3
        for version, scale in ((1, 1.1), (2, 0.9)):
            sent = {name: tensor * scale for name, tensor in stored.items()}
            pool.sync(Sent(version, sent, limit=2**16))
            assert gap_to(sent, tmp_path, answers_of(pool, requests(6))) <= 1e-3
    finally:
        pool.stop()


def gap_to(stored: dict[str, torch.Tensor], folder: Path, answers: list[Answer]) -> float:
    """Between the answers' log-probs and those of a model folder with these tensors."""
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return gap(answers, log_probs_of(weights_of(folder, 1.0), folder, answers))
