"""Writes the table of docs/models.md from tiny random models, one of each family: `python -m scripts.model_table`."""

from __future__ import annotations

import logging
import tempfile
from itertools import dropwhile
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import PolicyReader, load_policy, no_dropout

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HEADER = "| type | class | common beginnings read once | weights renamed for engines | LoRA |\n|---|---|---|---|---|\n"
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
# Names of causal classes of transformers (without ForCausalLM), and what their configurations differ by from SIZES.
FAMILIES: dict[str, dict[str, Any]] = {
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Cohere": {"logit_scale": 0.25},
    "Cohere2": {"logit_scale": 0.25, "sliding_window": 8},
    "DeepseekV3": EXPERTS
    | LATENT
    | {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
    "Exaone4": {"sliding_window": 8},
    # It makes its own of the hidden size.
    "Falcon": {"head_dim": None},
    "Gemma": {},
    "Gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "sliding_window": 8},
    "Gemma3": {"sliding_window": 8},
    "Glm4": {},
    "GPT2": GPT2,
    "GPTBigCode": GPT2,
    "GPTJ": GPT2 | {"rotary_dim": 8},
    "GPTNeo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "GPTNeoX": {},
    "GptOss": EXPERTS | {"sliding_window": 8},
    "Granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "GraniteMoe": EXPERTS | {"logits_scaling": 4.0},
    "Helium": {},
    "Jamba": EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "Llama": {},
    "Mamba": {},
    "Mistral": {},
    "Mixtral": EXPERTS,
    "Nemotron": {},
    "Olmo": {},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 8},
    "Olmoe": EXPERTS,
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 32},
    "Phi": {},
    "Phi3": {},
    "Qwen2": {},
    "Qwen2Moe": EXPERTS | {"shared_expert_intermediate_size": 32},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Qwen3Next": EXPERTS | LINEAR | {"shared_expert_intermediate_size": 32},
    "Qwen3_5": LINEAR,
    "RecurrentGemma": {"lru_width": 64, "logits_soft_cap": 1.0},
    "SmolLM3": {},
    "StableLm": {},
    "Starcoder2": {},
}
CLASSES = {"GPT2": "GPT2LMHeadModel"}


def made(family: str, **changes: Any) -> Any:
    """A tiny random model of a family, in float32."""
    kind = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))
    given = SIZES | FAMILIES[family] | changes
    config = kind.config_class(**{key: value for key, value in given.items() if value is not None})
    no_dropout(config)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return kind(config).eval()


def row_of(model: Any) -> str:
    """The table's line of a model that was loaded from a folder; its reader is checked."""
    reader = PolicyReader(model)
    check_reader(reader)
    names = StoredNames(model, dict(model.named_parameters()))
    renamed = {spec.name for spec in names.specs} != {name for name, _ in model.named_parameters()}
    head = model.get_output_embeddings()
    linear = any(isinstance(layer, nn.Linear) and layer is not head for layer in model.modules())
    facts = (reader.share_prefix, renamed, linear)
    return (
        f"| `{model.config.model_type}` | {type(model).__name__} | " + " | ".join("yes" if one else "no" for one in facts) + " |"
    )


def table() -> str:
    """The whole table."""
    rows = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            made(family).save_pretrained(folder)
            rows.append(row_of(load_policy(Path(folder), torch.float32, "eager")))
    return HEADER + "\n".join(rows) + "\n"


def main() -> None:
    """Put the table into its page, in the place of the one that is there."""
    logging.getLogger("dvpo_ray").setLevel(logging.ERROR)
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(HEADER)
    after = "".join(dropwhile(lambda line: line.startswith("|"), rest.splitlines(keepends=True)))
    PAGE.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
