"""Tiny random models, one of each family of causal language models, in float32, and a tokenizer of theirs.

Their heads are of a size that vLLM's CPU kernels have, so that engines can serve them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from dvpo_ray.models.token_reader import no_dropout

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GPT2 = {"n_embd": 128, "n_head": 4, "n_layer": 2, "n_positions": 64}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {"q_lora_rank": 24, "kv_lora_rank": 512, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32}
LINEAR = {
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
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
        # Published configurations name them, transformers does not, and vLLM takes others if they are not there.
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "num_key_value_heads": 4,
        "head_dim": 64,
    },
    "Exaone4": {"sliding_window": 8},
    # It makes its own of the hidden size.
    "Falcon": {"head_dim": None},
    "Gemma": {},
    "Gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "sliding_window": 8},
    "Gemma3": {"sliding_window": 8},
    "Glm4": {},
    "GPT2": GPT2,
    "GPTBigCode": GPT2 | {"num_key_value_heads": 1},
    "GPTJ": GPT2 | {"rotary_dim": 8},
    "GPTNeo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "GPTNeoX": {},
    "GptOss": EXPERTS | {"sliding_window": 8},
    "Granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "GraniteMoe": EXPERTS | {"logits_scaling": 4.0},
    "Helium": {},
    "Jamba": EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    # Its published configurations name the widths of its blocks, which transformers takes from the hidden size.
    "Lfm2": {"layer_types": ["conv", "full_attention"], "conv_dim": 128, "block_dim": 128},
    "Llama": {},
    "Mamba": {},
    "Mistral": {},
    "Mixtral": EXPERTS,
    "Nemotron": {},
    "Olmo": {},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 8},
    "Olmoe": EXPERTS,
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64, "init_std": 0.2},
    "Phi": {},
    "Phi3": {},
    "Qwen2": {},
    "Qwen2Moe": EXPERTS | {"shared_expert_intermediate_size": 64},
    "Qwen3": {},
    "Qwen3Moe": EXPERTS,
    "Qwen3Next": EXPERTS | LINEAR | {"shared_expert_intermediate_size": 64},
    "Qwen3_5": LINEAR,
    "RecurrentGemma": {"lru_width": 128, "logits_soft_cap": 1.0},
    "SmolLM3": {},
    "StableLm": {},
    "Starcoder2": {},
}
CLASSES = {"GPT2": "GPT2LMHeadModel"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def made(family: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model of a family, in float32."""
    kind = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))
    known = kind.config_class()
    # A size that a family does not know (heads of keys in GPT-NeoX) would be saved with it, and engines would believe it.
    given = {key: value for key, value in SIZES.items() if hasattr(known, key)} | FAMILIES[family] | changes
    config = kind.config_class(**{key: value for key, value in given.items() if value is not None})
    no_dropout(config)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    return kind(config).eval()


def made_tokenizer() -> Any:
    """A byte-level tokenizer of 300 tokens with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save(family: str, folder: Path, seed: int = 0, **changes: Any) -> None:
    """Write an ordinary model folder of a family."""
    made(family, seed, **changes).save_pretrained(folder)
    made_tokenizer().save_pretrained(folder)
