"""Folders that are not whole: found in the driver by names and shapes alone, and wherever a model is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from dvpo_ray.config.sections import ModelSection
from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import check_model_folder, tensor_files
from dvpo_ray.models.loading import check_tensors, model_config
from dvpo_ray.models.token_reader import load_policy, parameter_hash
from dvpo_ray.models.value_model import load_value_model, new_value_model
from dvpo_ray.planning.preflight import parameters_in
from jobs.models import base_model
from scripts.tiny_families import made

Weights = dict[str, Tensor]


def check(folder: Path) -> None:
    check_tensors(folder, model_config(folder))


LOADERS: dict[str, Callable[[Path], Any]] = {
    "driver": check,
    "policy": lambda folder: load_policy(folder, torch.float32, "eager"),
    "value": lambda folder: new_value_model(folder, "eager", torch.float32),
}


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if not any(part in name for part in parts)}


def compiled(weights: Weights) -> Weights:
    return {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}


def narrow(weights: Weights) -> Weights:
    return weights | {"model.norm.weight": torch.ones(8)}


DAMAGES: dict[str, tuple[str, Callable[[Weights], Weights], str]] = {
    "a layer": ("Llama", without("layers.1."), r"it lacks 'model\.layers\.1\.input_layernorm\.weight', .* and 6 more: copy the"),
    "the output layer": ("Llama", without("lm_head"), r"it lacks 'lm_head\.weight': copy the whole folder again"),
    "a foreign tensor": ("Llama", lambda w: w | {"model.extra.weight": torch.ones(2)}, r"are no layer's: 'model\.extra\.weight'"),
    "a compiled model": ("Llama", compiled, r"save the model inside \(model\._orig_mod\) with save_pretrained"),
    "another shape": ("Llama", narrow, r"other shapes than config\.json says: 'model\.norm\.weight'"),
    "an expert": ("Mixtral", without("experts.3."), r"other shapes than config\.json says: 'model\.layers\.0\.mlp\.experts"),
    "half an expert": ("Mixtral", without("experts.3.w1"), r"do not make the weights of a 'mixtral'|other shapes"),
}


@pytest.mark.parametrize("who", LOADERS)
@pytest.mark.parametrize("what", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused(what: str, who: str, tmp_path: Path) -> None:
    family, damage, message = DAMAGES[what]
    made(family, tie_word_embeddings=False).save_pretrained(tmp_path)
    LOADERS[who](tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(damage(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        LOADERS[who](tmp_path)


@pytest.mark.parametrize("who", LOADERS)
def test_tables_that_older_releases_saved_do_no_harm(who: str, tmp_path: Path) -> None:
    made("GPT2").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {f"transformer.h.{i}.attn.{name}": torch.ones(1) for i in (0, 1) for name in ("bias", "masked_bias")}
    save_file(load_file(file) | old, file, metadata={"format": "pt"})
    LOADERS[who](tmp_path)


def test_it_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    base_model(ModelSection(path=str(folder)))
    file = folder / "model.safetensors"
    save_file(without("layers.1.")(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="is not whole: it lacks"):
        base_model(ModelSection(path=str(folder)))


def test_a_value_model_has_a_head_and_a_whole_backbone(tmp_path: Path) -> None:
    made("Llama").save_pretrained(tmp_path / "base")
    new_value_model(tmp_path / "base", "eager", torch.float32).save_pretrained(tmp_path / "value")
    file = tmp_path / "value" / "model.safetensors"
    weights = load_file(file)
    for damage, message in (
        (without("layers.1."), r"it lacks 'layers\.1\."),
        (without("score.weight"), r"a tensor 'score\.weight' of shape \[1, hidden size\], here is none"),
        (lambda w: w | {"score.weight": torch.ones(3, 64)}, r"here is one of shape \[3, 64\]"),
        (lambda w: w | {"classifier.weight": torch.ones(3, 64)}, r"are no layer's: 'classifier\.weight'"),
    ):
        save_file(damage(weights), file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=message):
            load_value_model(tmp_path / "value", torch.float32, "eager")


def test_the_index_says_which_files_are_the_models(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    model = load_policy(folder, torch.float32, "eager")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    numbers = parameters_in(folder)
    save_file({"layers.0.wq.weight": torch.ones(4)}, folder / "consolidated.safetensors")
    check_model_folder(folder)
    check(folder)
    assert parameter_hash(load_policy(folder, torch.float32, "eager")) == parameter_hash(model)
    assert "layers.0.wq.weight" not in tensor_files(folder) and parameters_in(folder) == numbers
    shards[1].unlink()
    with pytest.raises(ModelError, match=rf"{shards[1].name} is missing although model\.safetensors\.index\.json names it"):
        check_model_folder(folder)


def test_a_model_that_is_no_causal_language_model_is_named(tmp_path: Path) -> None:
    transformers.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, d_kv=8).save_pretrained(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    for loader in LOADERS.values():
        with pytest.raises(ModelError, match="model type 't5' cannot be opened with AutoModelForCausalLM"):
            loader(tmp_path)


def test_a_configuration_of_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(ModelError, match=r"config\.json is not of a model that can be used here"):
        check(tmp_path)
