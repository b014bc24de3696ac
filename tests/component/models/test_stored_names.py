"""Weights that engines are sent, against those that ``save_pretrained`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actors.weights.buckets import layout, plan_buckets, read_bucket, write_bucket
from dvpo_ray.models.stored_names import StoredNames
from dvpo_ray.models.token_reader import load_policy
from scripts.tiny_families import made

FAMILIES = ["Llama", "GPTNeoX", "Mixtral", "Qwen3Moe", "Olmoe", "GraniteMoe"]


@pytest.mark.parametrize("limit", [2**30, 20_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_sent_in_buckets_is_what_is_saved(family: str, limit: int, tmp_path: Path) -> None:
    made(family, tie_word_embeddings=False).save_pretrained(tmp_path)
    model = load_policy(tmp_path, torch.float32, "eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    weights = dict(model.named_parameters())
    names = StoredNames(model, weights)
    sent: dict[str, Tensor] = {}
    for specs in plan_buckets(names.specs, limit):
        sources = names.sources(specs)
        assert limit > 2**20 or len(sources) < 10, "only what the bucket needs is gathered"
        memory = torch.empty(layout(specs)[1], dtype=torch.uint8)
        write_bucket(memory, specs, names.stored({name: weights[name] for name in sources}))
        sent |= {name: tensor.clone() for name, tensor in read_bucket(memory, specs)}
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(sent) == set(saved) == set(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(sent[name], saved[name]) for name in saved)


def test_experts_are_tensors_of_their_own_again(tmp_path: Path) -> None:
    made("Mixtral").save_pretrained(tmp_path)
    model = load_policy(tmp_path, torch.float32, "eager")
    held = {name: tuple(p.shape) for name, p in model.named_parameters() if "layers.0.mlp.experts" in name}
    assert len(held) == 2 and all(shape[0] == 4 for shape in held.values()), "else there is nothing to undo"
    specs = {spec.name: spec.shape for spec in StoredNames(model, dict(model.named_parameters())).specs}
    for expert in range(4):
        prefix = f"model.layers.0.block_sparse_moe.experts.{expert}"
        assert [specs[f"{prefix}.{part}.weight"] for part in ("w1", "w2", "w3")] == [(96, 128), (128, 96), (96, 128)]


def test_shapes_alone_will_do(tmp_path: Path) -> None:
    """Where ranks share the weights, none has them whole outside of the passes."""
    made("Mixtral").save_pretrained(tmp_path)
    model = load_policy(tmp_path, torch.float32, "eager")
    whole = StoredNames(model, dict(model.named_parameters())).specs
    shapes = {name: parameter.to("meta") for name, parameter in model.named_parameters()}
    assert StoredNames(model, shapes).specs == whole


def test_adapters_keep_their_names(tmp_path: Path) -> None:
    made("Mixtral").save_pretrained(tmp_path)
    model = load_policy(tmp_path, torch.float32, "eager")
    adapters = {"model.layers.0.mlp.x.lora_A.default.weight": torch.ones(2, 3)}
    names = StoredNames(model, adapters, adapters=True)
    assert [spec.name for spec in names.specs] == list(adapters)
    assert names.sources(names.specs) == list(adapters)
    assert torch.equal(names.stored(adapters)[next(iter(adapters))], torch.ones(2, 3))
