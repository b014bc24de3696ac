"""Adapters against peft: the merge, what an engine must load, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dvpo_ray.config.sections import LoraSection
from dvpo_ray.errors import ModelError, WeightSyncError
from dvpo_ray.models.folder import tensor_files, weights_sha256
from dvpo_ray.models.lora import add_adapters, merged, merged_state, merged_tensors, save_adapters, set_dropout
from dvpo_ray.models.token_reader import load_policy
from scripts.tiny_families import made

FUSED = [["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]]
INPUT = torch.tensor([[5, 9, 200, 31, 7]])


def model_of(folder: Path, config: LoraSection, dtype: torch.dtype = torch.float32) -> Any:
    """The tiny model with adapters that do something: B is 0 at first."""
    torch.manual_seed(1)
    model = load_policy(folder, dtype, "eager")
    add_adapters(model, config, folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.05)
    return model


def adapters_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_the_merge_by_hand() -> None:
    """W = [[1, 2], [3, 4]], B = [1, 2], A = [10, 20], scale 0.5: B A = [[10, 20], [20, 40]]."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    a, b = torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0], [2.0]])
    assert torch.equal(merged(weight, a, b, 0.5), torch.tensor([[6.0, 12.0], [13.0, 24.0]]))
    # 1 + 1/512 is no bfloat16 number: the sum is rounded once, and 256 times of what was added is not lost.
    small = merged(torch.ones(1, 1).bfloat16(), torch.tensor([[1 / 512]]).bfloat16(), torch.ones(1, 1).bfloat16(), 256.0)
    assert small.dtype == torch.bfloat16 and float(small) == 1.5


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained(tiny_model: Path) -> None:
    model = load_policy(tiny_model, torch.float32, "eager")
    before = model(INPUT).logits
    add_adapters(model, LoraSection(rank=4), tiny_model)
    assert torch.equal(model(INPUT).logits, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 7, "two matrices for seven linear layers in each of two layers"
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


@pytest.mark.parametrize("config", [LoraSection(rank=4, alpha=6), LoraSection(rank=9, alpha=6, rslora=True)])
def test_merged_weights_are_those_of_peft(tiny_model: Path, tmp_path: Path, config: LoraSection) -> None:
    from peft import PeftModel

    assert config.scale == (2.0 if config.rslora else 1.5)
    model = model_of(tiny_model, config)
    found = merged_state(model, model.state_dict())
    save_adapters(model, model.state_dict(), tmp_path, str(tiny_model))
    loaded = PeftModel.from_pretrained(load_policy(tiny_model, torch.float32, "eager"), str(tmp_path))
    assert torch.allclose(loaded(INPUT).logits, model(INPUT).logits, atol=1e-6), "peft reads the adapters as they are"
    expected = loaded.merge_and_unload().state_dict()
    assert set(found) == set(expected)
    assert max(float((found[name] - expected[name]).abs().max()) for name in found) <= 1e-6
    plain = load_policy(tiny_model, torch.float32, "eager")
    plain.load_state_dict(found)
    assert torch.allclose(plain(INPUT).logits, model(INPUT).logits, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_loads_touched_layers_whole_and_no_others(tiny_model: Path, dtype: torch.dtype) -> None:
    config = LoraSection(rank=4, target_modules=("q_proj", "1.mlp.down_proj"))
    model = model_of(tiny_model, config, dtype)
    loaded = dict(merged_tensors(tiny_model, adapters_of(model), config.scale, FUSED, dtype))
    qkv = {f"model.layers.{i}.self_attn.{part}.weight" for i in (0, 1) for part in FUSED[0]}
    assert set(loaded) == qkv | {"model.layers.1.mlp.down_proj.weight"}
    assert {tensor.dtype for tensor in loaded.values()} == {dtype}
    state, base = merged_state(model, model.state_dict()), load_policy(tiny_model, dtype, "eager").state_dict()
    for name, tensor in loaded.items():
        # The folder keeps float32: an engine rounds the sum, a bfloat16 learner's own base was rounded before.
        assert torch.allclose(tensor, state[name], atol=1e-6 if dtype == torch.float32 else 1e-2), name
        assert torch.equal(tensor, base[name]) == ("k_proj" in name or "v_proj" in name), name


def test_biases_of_touched_layers_come_along(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=2)).save_pretrained(tmp_path)
    model = model_of(tmp_path, LoraSection(rank=2, target_modules=("v_proj",)))
    loaded = dict(merged_tensors(tmp_path, adapters_of(model), 1.0, FUSED, torch.float32))
    assert set(loaded) == {f"model.layers.0.self_attn.{part}.{kind}" for part in FUSED[0] for kind in ("weight", "bias")}


def test_half_an_adapter_is_refused(tiny_model: Path) -> None:
    adapters = adapters_of(model_of(tiny_model, LoraSection(rank=4)))
    del adapters["model.layers.1.mlp.up_proj.lora_B.default.weight"]
    with pytest.raises(WeightSyncError, match=r"'model\.layers\.1\.mlp\.up_proj' came with one of its matrices only"):
        dict(merged_tensors(tiny_model, adapters, 1.0, FUSED, torch.float32))


@pytest.mark.parametrize("target", ["q_projj", "lm_head", "embed_tokens"])
def test_a_target_that_can_have_no_adapter_is_named(tiny_model: Path, target: str) -> None:
    model = load_policy(tiny_model, torch.float32, "eager")
    with pytest.raises(ModelError, match=f"names '{target}', which is no linear layer .* name some of down_proj, gate_proj"):
        add_adapters(model, LoraSection(target_modules=("q_proj", target)), tiny_model)


def test_a_layer_that_the_folder_keeps_under_another_name_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tensor 'model\.layers\.0\.self_attn\.q_proj\.weight'"):
        add_adapters(load_policy(tiny_model, torch.float32, "eager"), LoraSection(), tmp_path)


def test_dropout_is_on_only_where_it_is_asked_for(tiny_model: Path) -> None:
    model = model_of(tiny_model, LoraSection(rank=4, dropout=0.5))
    whole = model(INPUT).logits
    set_dropout(model, True)
    torch.manual_seed(3)
    first = model(INPUT).logits
    assert not torch.equal(first, whole)
    torch.manual_seed(3)
    assert torch.equal(model(INPUT).logits, first)
    set_dropout(model, False)
    assert torch.equal(model(INPUT).logits, whole)


def test_the_digest_of_a_folder_is_that_of_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    model = load_policy(tiny_model, torch.float32, "eager")
    model.save_pretrained(tmp_path / "same")
    assert weights_sha256(tmp_path / "same") == weights_sha256(tiny_model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight[0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    assert weights_sha256(tmp_path / "other") != weights_sha256(tiny_model)
    assert tensor_files(tiny_model)["model.norm.weight"] == tiny_model / "model.safetensors"


@pytest.mark.parametrize("targets", ["all-linear", ("attn.c_proj",)])
def test_layers_that_keep_their_weights_transposed(targets: Any, tmp_path: Path) -> None:
    """GPT-2's, also when the only ones with adapters are square and do not tell."""
    made("GPT2").save_pretrained(tmp_path)
    config = LoraSection(rank=4, target_modules=targets)
    model = model_of(tmp_path, config)
    plain = load_policy(tmp_path, torch.float32, "eager")
    before = plain(INPUT).logits
    plain.load_state_dict(merged_state(model, model.state_dict()))
    assert torch.allclose(plain(INPUT).logits, model(INPUT).logits, atol=1e-4)
    assert not torch.allclose(plain(INPUT).logits, before, atol=1e-2)
    loaded = dict(merged_tensors(tmp_path, adapters_of(model), config.scale, [], torch.float32))
    assert {name for name in loaded if name.endswith(".weight")} == {
        f"transformer.h.{i}.{part}.weight"
        for i in (0, 1)
        for part in (["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"] if targets == "all-linear" else ["attn.c_proj"])
    }
    assert all(
        torch.allclose(tensor, merged_state(model, model.state_dict())[name], atol=1e-6) for name, tensor in loaded.items()
    )


def test_the_merge_of_a_transposed_layer_by_hand() -> None:
    """As above, W and the sum transposed: [[1, 3], [2, 4]] + 0.5 [[10, 20], [20, 40]]."""
    a, b = torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0], [2.0]])
    assert torch.equal(merged(torch.tensor([[1.0, 3.0], [2.0, 4.0]]), a, b, 0.5, True), torch.tensor([[6.0, 13.0], [12.0, 24.0]]))


def test_a_model_without_linear_layers_is_refused_by_name(tmp_path: Path) -> None:
    made("Llama", num_hidden_layers=0).save_pretrained(tmp_path)
    model = load_policy(tmp_path, torch.float32, "eager")
    with pytest.raises(ModelError, match=r"model type 'llama' has no linear layers .*Embedding.*train without policy\.lora"):
        add_adapters(model, LoraSection(), tmp_path)


@pytest.mark.parametrize(
    ("family", "left", "kept"),
    [
        ("Mamba", ["x_proj", "dt_proj", "out_proj"], "in_proj"),
        ("Jamba", ["dt_proj"], "x_proj"),
        ("Qwen3Next", ["gate_proj", "up_proj", "down_proj"], "shared_expert_gate"),
    ],
)
def test_layers_that_adapters_would_not_reach_have_none_and_the_log_says_so(
    family: str, left: list[str], kept: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(family).save_pretrained(tmp_path)
    model = load_policy(tmp_path, torch.float32, "eager")
    with pytest.raises(ModelError, match=f"names '{left[0]}', which is no linear layer that can have an adapter"):
        add_adapters(model, LoraSection(target_modules=(left[0],)), tmp_path)
    add_adapters(model, LoraSection(rank=4), tmp_path)
    layers = {name.removesuffix(".lora_A.default.weight").rpartition(".")[2] for name in adapters_of(model) if "lora_A" in name}
    assert kept in layers and not layers & set(left)
    assert not any(".experts." in name for name in adapters_of(model))
    assert f"linear layers have no adapters ({', '.join(sorted(left))})" in caplog.text
