"""Folders of models of text and pictures: the language model is read where transformers has one for text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dvpo_ray.errors import ModelError
from dvpo_ray.models.limits import Limits
from dvpo_ray.models.loading import check_tensors, model_config
from dvpo_ray.models.reader_check import check_reader
from dvpo_ray.models.token_reader import PolicyReader, ValueReader, load_policy
from dvpo_ray.models.value_model import load_value_model, new_value_model
from dvpo_ray.planning import ModelShape
from scripts.model_table import CHECKS, cell_of
from scripts.reading_checks import REFUSED, YES
from scripts.tiny_families import FAMILIES, SIZES

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3() -> Any:
    text = SIZES | FAMILIES["Gemma3"]
    config = transformers.Gemma3Config(text_config=text, vision_config=VISION | {"model_type": "siglip_vision_model"})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return transformers.Gemma3ForConditionalGeneration(config).eval()


def qwen3_5() -> Any:
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen3_5Config(text_config=SIZES | FAMILIES["Qwen3_5"], vision_config=vision)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return transformers.Qwen3_5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("make", [gemma3, qwen3_5], ids=lambda make: make.__name__)
def test_the_language_model_of_a_multimodal_folder_is_read(make: Any, tmp_path: Path) -> None:
    whole = make()
    whole.save_pretrained(tmp_path / "base")
    config = model_config(tmp_path / "base")
    check_tensors(tmp_path / "base", config)
    assert Limits.of(config).vocabulary == 320
    assert ModelShape.from_folder(tmp_path / "base").vocabulary == 320
    policy = load_policy(tmp_path / "base", torch.float32, "eager")
    ids = torch.tensor([[5, 9, 200, 31, 7]])
    with torch.no_grad():
        assert torch.allclose(policy(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-4)
    check_reader(PolicyReader(policy))
    value = new_value_model(tmp_path / "base", "eager", torch.float32)
    check_reader(ValueReader(value))
    value.save_pretrained(tmp_path / "value")
    load_value_model(tmp_path / "value", torch.float32, "eager")


@pytest.mark.parametrize("make", [gemma3, qwen3_5], ids=lambda make: make.__name__)
def test_it_is_read_and_trained_as_language_models_are(make: Any, tokenizer: Any, tmp_path: Path, process_group: None) -> None:
    """But for adapters where the folder has its layers under other names."""
    make().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    said = {column: cell_of(checks, tmp_path / "base", tmp_path) for column, checks in CHECKS.items()}
    assert {said[column] for column in ("log-probs", "value model", "DPO", "resume", "checkpointing")} == {YES}
    assert said["LoRA"] == REFUSED


def test_a_multimodal_model_without_one_is_refused_by_name(tmp_path: Path) -> None:
    text, vision = SIZES | {"model_type": "llama"}, VISION | {"model_type": "clip_vision_model"}
    config = transformers.LlavaConfig(text_config=text, vision_config=vision)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model type 'llava', which is made of text_config, vision_config, cannot be opened"):
        check_tensors(tmp_path, model_config(tmp_path))
    with pytest.raises(ModelError, match="give a folder of a language model"):
        load_policy(tmp_path, torch.float32, "eager")
