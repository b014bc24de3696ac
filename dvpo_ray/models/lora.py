"""LoRA: a frozen model with small trained matrices beside its linear layers, and the model that both together are.

Legend: W [out, in] a layer's weight; A [rank, in] and B [out, rank] its adapter. The layer with its adapter is the layer
``W + scale * B @ A`` (Hu et al. 2021, arXiv 2106.09685, section 4.1). GPT-2's layers (``Conv1D``) keep W transposed [in, out].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dvpo_ray.config.sections import LoraSection
from dvpo_ray.errors import ModelError, WeightSyncError
from dvpo_ray.models.folder import tensor_files
from dvpo_ray.models.lora_targets import is_transposed, targets

# The folder of adapters, beside the one of the merged policy.
ADAPTERS = "adapters"
# What peft calls the only adapter of a model, and how the names of parameters tell of it.
ONLY = "default"
A, B, BASE = f".lora_A.{ONLY}.weight", f".lora_B.{ONLY}.weight", ".base_layer."


def add_adapters(model: Any, config: LoraSection, folder: Path) -> None:
    """Freeze a model loaded from ``folder`` and put adapters into it, in place. B is 0: the model is what it was.

    Raises:
        ModelError: the model has no linear layers, a target is none of them, or the folder has no weight of its name for
            engines to add to.
    """
    from peft import LoraConfig, inject_adapter_in_model

    chosen = targets(model, config.target_modules)
    stored = tensor_files(folder)
    absent = [name for name in chosen if f"{name}.weight" not in stored]
    if absent:
        raise ModelError(
            f"model type '{model.config.model_type}': folder '{folder}' has no tensor '{absent[0]}.weight' (it keeps "
            f"{len(absent)} of the layers chosen under other names): take them out of policy.lora.target_modules, or train "
            "without policy.lora"
        )
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        target_modules=chosen,
        fan_in_fan_out=all(is_transposed(model.get_submodule(name)) for name in chosen),
    )
    inject_adapter_in_model(settings, model, ONLY)
    set_dropout(model, False)


def set_dropout(model: nn.Module, active: bool) -> None:
    """Let adapters leave out some of their inputs from now on, or not; nothing else in the model has a mode."""
    for name, layer in model.named_modules():
        if name.endswith(f".lora_dropout.{ONLY}"):
            layer.train(active)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool = False) -> Tensor:
    """``W + scale * B @ A``, computed in float32 and given in the type of W, and as W is when that is ``transposed``."""
    first, second = (a.T, b.T) if transposed else (b, a)
    return torch.addmm(weight.float(), first.float(), second.float(), alpha=scale).to(weight.dtype)


@torch.no_grad()
def merged_state(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of an ordinary model, adapters merged, from the whole ``state`` of ``model``; without adapters, that state."""
    found = {name.replace(BASE, "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, layer in model.named_modules():
        if f"{name}{A}" in state:
            weight = f"{name}.weight"
            transposed = is_transposed(layer.base_layer)
            found[weight] = merged(found[weight], state[name + A], state[name + B], layer.scaling[ONLY], transposed)
    return found


def save_adapters(model: Any, state: Mapping[str, Tensor], folder: Path, base: str, revision: str | None = None) -> None:
    """Write adapters and their settings as peft reads them; ``state`` is that of ``model``, whole, ``base`` their model, a folder
    or a name on the Hub."""
    from peft import get_peft_model_state_dict

    kept = get_peft_model_state_dict(model, state_dict=dict(state), adapter_name=ONLY, save_embedding_layers=False)
    tensors = {f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in kept.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    replace(model.peft_config[ONLY], inference_mode=True, base_model_name_or_path=base, revision=revision).save_pretrained(folder)


def merged_tensors(
    folder: Path, adapters: Mapping[str, Tensor], scale: float, fused: Iterable[Sequence[str]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that engines must load so that they hold the model in ``folder`` with its adapters merged.

    An engine keeps some layers side by side in one (``fused`` names them, as ``[q_proj, k_proj, v_proj]``) and can only load
    such a layer whole: those without an adapter come as the folder has them, and so do biases.

    Raises:
        WeightSyncError: an adapter lacks one of its matrices.
    """
    layers = dict.fromkeys(name.removesuffix(A).removesuffix(B) for name in adapters)
    files = tensor_files(folder)
    device = next(iter(adapters.values())).device
    opened = {file: safe_open(file, framework="pt", device=str(device)) for file in set(files.values())}
    transposed = _keeps_transposed(opened.values())
    stored = defaultdict(list)
    for name in files:
        stored[name.rpartition(".")[0]].append(name)
    for layer in _with_fused(list(layers), list(fused)):
        for name in stored[layer]:
            tensor = opened[files[name]].get_tensor(name)
            if layer in layers and name == f"{layer}.weight":
                if layer + A not in adapters or layer + B not in adapters:
                    raise WeightSyncError(f"the adapter of '{layer}' came with one of its matrices only")
                tensor = merged(tensor.float(), adapters[layer + A], adapters[layer + B], scale, transposed)
            yield name, tensor.to(dtype)


def _keeps_transposed(files: Iterable[Any]) -> bool:
    """Whether open safetensors files are of a model with transposed layers. These always have biases, which are [out]."""
    for file in files:
        names = set(file.keys())
        for name in names:
            bias = f"{name.removesuffix('.weight')}.bias"
            shape = file.get_slice(name).get_shape()
            if name.endswith(".weight") and bias in names and len(shape) == 2 and shape[0] != shape[1]:
                return bool(file.get_slice(bias).get_shape() == [shape[1]])
    return False


def _with_fused(layers: Sequence[str], fused: Sequence[Sequence[str]]) -> list[str]:
    """Layers and those kept side by side with them, each once, those of one fused layer together."""
    found: dict[str, None] = {}
    for layer in layers:
        parent, _, last = layer.rpartition(".")
        parts = next((parts for parts in fused if last in parts), [last])
        found |= dict.fromkeys(f"{parent}.{part}" for part in parts)
    return list(found)
