"""Which layers of a model get adapters: the linear ones, but for those that an adapter would not reach."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from dvpo_ray.errors import ModelError

# By model type, layers whose weights kernels of recurrent layers take by themselves, past an adapter.
PASSED_BY = {
    "mamba": ("x_proj", "dt_proj", "out_proj"),
    "falcon_mamba": ("x_proj", "dt_proj", "out_proj"),
    "jamba": ("dt_proj",),
    "mamba2": ("out_proj",),
    "falcon_h1": ("out_proj",),
    "nemotron_h": ("out_proj",),
}


def targets(model: Any, wanted: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers that get adapters.

    Raises:
        ModelError: there are none in the model, or a target is none of them.
    """
    linear = _adaptable(model)
    if isinstance(wanted, str):
        return linear
    chosen = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in wanted}
    for target, names in chosen.items():
        if not names:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ModelError(
                f"lora.target_modules names '{target}', which is no linear layer that can have an adapter: "
                f"name some of {known}, or 'all-linear'"
            )
    return [name for name in linear if any(name in names for names in chosen.values())]


def _adaptable(model: Any) -> list[str]:
    """Full names of the linear layers that can have adapters; the output head, often the embedding as well, is none of them.

    The log tells which other ones are none.

    Raises:
        ModelError: there are none, naming the model's type.
    """
    head, kind = model.get_output_embeddings(), model.config.model_type
    layers = [(name, layer) for name, layer in model.named_modules() if layer is not head]
    linear = [name for name, layer in layers if isinstance(layer, nn.Linear) or is_transposed(layer)]
    if not linear:
        kinds = ", ".join(sorted({type(layer).__name__ for layer in model.modules() if hasattr(layer, "weight")}))
        raise ModelError(
            f"model type '{kind}' has no linear layers (torch.nn.Linear) that can have adapters, only {kinds}: train without "
            "policy.lora"
        )
    past = {name for name in linear if name.rpartition(".")[2] in PASSED_BY.get(kind, ())}
    named = _taken_as_named(model, linear) - past
    found = [name for name in linear if name in named]
    if len(found) < len(linear):
        others = ", ".join(sorted({name.rpartition(".")[2] for name in set(linear) - set(found)}))
        logging.getLogger(__name__).warning(
            "model type '%s': %d of its %d linear layers have no adapters (%s): its kernels pass them by, or peft takes their "
            "names for those of experts",
            kind,
            len(linear) - len(found),
            len(linear),
            others,
        )
    return found


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as [in, out], as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def _taken_as_named(model: Any, linear: Sequence[str]) -> set[str]:
    """Those of a model's linear layers that peft gives adapters to when they are named.

    Experts of a layer are one tensor since transformers 5. For some types peft takes any layer whose name is one that experts
    had (``gate_proj``, also of a dense layer or of a shared expert) for them, here and where the adapters are read.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    trial = LoraConfig(target_modules=list(linear))
    convert_peft_config_for_transformers(trial, model, None)
    return set(trial.target_modules or ())
