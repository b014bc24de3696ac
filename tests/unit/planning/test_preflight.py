"""What is refused before anything is trained, by the figures of small and of known models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dvpo_ray.planning.preflight import (
    Engines,
    Memory,
    cache_bytes,
    head_size,
    longest_context,
    parameters_in,
    too_large,
    unservable,
    unsyncable,
)
from tests.support.engines import settings

SIZES = frozenset({32, 64, 128})
# 2 layers, 4 heads of 16, 2 of them for keys and values: 2 x 2 x 2 x 16 = 128 numbers a token.
TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}


def engines(on_cpu: bool = True, **engine: Any) -> Engines:
    section = settings().rollout
    return Engines("policy.rollout", section.model_copy(update={"engine": section.engine.model_copy(update=engine)}), on_cpu)


def problems(config: dict[str, Any], found: Engines, long_allowed: bool = False) -> list[str]:
    return list(unservable(config, found, SIZES, long_allowed))


def test_a_model_that_fits_is_not_refused() -> None:
    assert problems(TINY | {"head_dim": 32}, engines()) == []


def test_a_head_size_without_cpu_kernel_is_refused_on_cpu_alone() -> None:
    (found,) = problems(TINY, engines())
    assert found.startswith("model.path: its attention heads have 16 numbers") and "32, 64, 128" in found
    assert problems(TINY, engines(on_cpu=False)) == []
    assert list(unservable(TINY, engines(), frozenset(), False)) == [], "a table that is not known refuses nothing"


@pytest.mark.parametrize(
    ("config", "size"),
    [({}, 16), ({"head_dim": 24}, 24), ({"head_dim": None}, 16), ({"kv_lora_rank": 512}, 0), ({"hidden_size_per_head": 80}, 80)],
)
def test_head_sizes(config: dict[str, Any], size: int) -> None:
    assert head_size(TINY | config) == size


def test_rows_beyond_a_window_that_engines_take_for_wider_are_refused() -> None:
    config = TINY | {"head_dim": 32, "model_type": "cohere2", "sliding_window": 128}
    assert problems(config, engines(max_model_len=128)) == []
    (found,) = problems(config, engines(max_model_len=129))
    assert "max_model_len (129) is more than the sliding window of a 'cohere2' (128 tokens)" in found
    assert problems(config | {"model_type": "mistral"}, engines(max_model_len=129)) == []


def test_a_type_whose_new_weights_engines_do_not_take_up_is_refused_by_name() -> None:
    (found,) = unsyncable(TINY | {"model_type": "gpt_oss"}, adapters=False)
    assert "engines do not take up all weights of a 'gpt_oss'" in found and "train adapters" in found
    assert list(unsyncable(TINY | {"model_type": "gpt_oss"}, adapters=True)) == list(unsyncable(TINY, adapters=False)) == []


def test_a_length_beyond_the_models_is_refused_with_the_key_that_says_so() -> None:
    config = TINY | {"head_dim": 32}
    assert problems(config, engines(max_model_len=512)) == []
    (found,) = problems(config, engines(max_model_len=513))
    assert "policy.rollout.engine.max_model_len (513)" in found and "max_position_embeddings: 512 tokens" in found
    assert problems(config, engines(max_model_len=513), long_allowed=True) == []


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, (512, "max_position_embeddings")),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, (2048, "max_position_embeddings")),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, (1024, "max_position_embeddings")),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, (512, "max_position_embeddings")),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, (512, "max_position_embeddings")),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, (512, "max_position_embeddings")),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}, "model_type": "gemma3_text"},
            (512, "max_position_embeddings"),
        ),
        ({"seq_length": 256}, (256, "seq_length")),
        ({"model_max_length": 4096}, (4096, "model_max_length")),
    ],
)
def test_longest_contexts(config: dict[str, Any], longest: tuple[float, str]) -> None:
    assert longest_context(TINY | config) == longest


def test_a_model_without_a_length_has_none() -> None:
    assert longest_context({"model_type": "mamba"}) == (math.inf, "")


def test_a_cache_too_small_for_one_row_is_refused() -> None:
    """65,536 tokens x 128 numbers a token x 2 for head_dim 32 x 4 bytes = 64 MiB."""
    config = TINY | {"head_dim": 32, "max_position_embeddings": 65536}
    assert cache_bytes(config, engines(max_model_len=65536).section) == 64 * 2**20
    assert problems(config, engines(max_model_len=65536, kv_cache_mib=64)) == []
    (found,) = problems(config, engines(max_model_len=65536, kv_cache_mib=63))
    assert "policy.rollout.engine.kv_cache_mib (63)" in found and "takes 64 MiB" in found
    assert problems(config, engines(on_cpu=False, max_model_len=65536, kv_cache_mib=63)) == [], "a GPU's cache is its memory"


def test_caches_that_do_not_keep_every_token_are_not_judged() -> None:
    section = engines(max_model_len=65536).section
    for config in ({"kv_lora_rank": 512}, {"sliding_window": 128}, {"layer_types": ["sliding_attention", "full_attention"]}):
        assert cache_bytes(TINY | config, section) == 0
    assert cache_bytes(TINY | {"sliding_window": 128, "use_sliding_window": False}, section) > 0


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(2, 2, 2)}, tmp_path / "two.safetensors")
    assert parameters_in(tmp_path) == 15 + 7 + 8


def test_memory_is_refused_when_models_alone_exceed_it_and_doubted_when_the_estimate_does() -> None:
    """SmolLM2-135M in float32: engine, reference and value model, and the learner's weights, gradients and two moments, are
    7 x 134.5 M x 4 bytes = 3.77 GB."""
    config = TINY | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }
    policy, parameters = settings(), 134_515_008

    def found(total: float, free: float) -> tuple[list[str], list[str]]:
        return too_large(policy, config, parameters, "eager", Memory(total, free))

    assert found(100e9, 100e9) == ([], [])
    never, maybe = found(3.7e9, 3e9)
    assert maybe == [] and "models and optimizer alone take 3.8 GB, this machine has 3.7" in never[0]
    never, maybe = found(3.8e9, 3e9)
    assert never == [] and "3.0 are free" in maybe[0]
