"""Models from folders of safetensors: every weight comes from the folder, or the folder is refused.

transformers fills a weight that it does not find with random numbers, and leaves out a tensor that it does not know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import weight_files

# What torch.compile puts before the names of a model's weights.
COMPILED = "_orig_mod."
# Masks and tables that older releases of transformers kept beside the weights (GPT-2, GPT-NeoX), and newer ones compute.
COMPUTED = (".attn.bias", ".attention.bias", ".masked_bias", ".causal_mask", ".inv_freq", ".position_ids")
NAMED = 3
# Types as safetensors files name them.
TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_whole(auto: Any, folder: Path, config: Any, beside: Collection[str] = (), **options: Any) -> Any:
    """A model by an ``auto`` class of transformers; ``beside``: tensors of the folder that the caller reads himself.

    Raises:
        ModelError: the folder lacks a weight of the model, or has one that is not its.
    """
    model, info = _loaded(auto, folder, config, folder, use_safetensors=True, **options)
    check_whole(folder, info, beside)
    return model


def model_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder.

    Raises:
        ModelError: transformers cannot read it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"'{folder}': config.json is not of a model that can be used here: {error}") from error


def check_tensors(folder: Path, config: Any) -> None:
    """Refuse a folder of a causal language model as ``load_whole`` does, from the names and shapes of its tensors alone.

    Models of code of their own and quantised ones are left to ``load_whole``.

    Raises:
        ModelError: as ``load_whole``, or transformers has no causal language model of this type.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    check_causal(config, folder)
    if getattr(config, "auto_map", None) or getattr(config, "quantization_config", None):
        return
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    # As AutoModelForCausalLM does: of some multimodal folders it takes the language model alone.
    text = config.get_text_config()
    one = text if kind.config_class is type(text) else config
    meta = {"state_dict": _without_numbers(folder), "device_map": {"": "meta"}, "dtype": torch.float32}
    check_whole(folder, _loaded(kind, None, one, folder, **meta)[1])


def _loaded(kind: Any, source: Path | None, config: Any, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model of a class of transformers, and what transformers found of its weights in ``folder``."""
    options |= {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with _quiet():
            model, info = kind.from_pretrained(source, **options)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ModelError(
            f"model folder '{folder}': its tensors do not make the weights of a '{config.model_type}' ({error}); copy the whole "
            "folder again, or save the model again with save_pretrained"
        ) from error
    return model, info


def _without_numbers(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors on no device, of the names and shapes of a folder's."""
    found = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                dtype = TYPES.get(part.get_dtype(), torch.float32)
                found[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return found


def check_causal(config: Any, folder: Path) -> None:
    """Refuse a type of model that transformers has no causal language model of.

    Raises:
        ModelError: naming the type, and the parts that a multimodal one has.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    parts = ", ".join(sorted(config.sub_configs))
    kind = f"model type '{config.model_type}'" + (f", which is made of {parts}," if parts else "")
    raise ModelError(
        f"'{folder}': {kind} cannot be opened with AutoModelForCausalLM: give a folder of a language model, which can be the "
        "language model of this one saved by itself with save_pretrained"
    )


def check_whole(folder: Path, info: Mapping[str, Any], beside: Collection[str] = ()) -> None:
    """Compare what transformers says of a loaded model (``output_loading_info``) with a whole folder.

    Raises:
        ModelError: naming some weights that the folder lacks, that no layer has, or that have another shape.
    """
    foreign = [name for name in info["unexpected_keys"] if name not in beside and not name.endswith(COMPUTED)]
    wrong = {
        "lacks": info["missing_keys"],
        "has tensors that are no layer's:": foreign,
        "has tensors of other shapes than config.json says:": [name for name, *_ in info["mismatched_keys"]],
    }
    found = [f"it {what} {_named(names)}" for what, names in wrong.items() if names]
    if not found:
        return
    remedy = (
        "it was saved from a compiled model: save the model inside (model._orig_mod) with save_pretrained"
        if any(COMPILED in name for name in foreign)
        else "copy the whole folder again, or save the model that config.json describes with save_pretrained"
    )
    raise ModelError(f"model folder '{folder}' is not whole: {'; '.join(found)}: {remedy}")


def _named(names: Collection[str]) -> str:
    first = ", ".join(f"'{name}'" for name in sorted(names)[:NAMED])
    return first if len(names) <= NAMED else f"{first} and {len(names) - NAMED} more"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report and progress bars: what is wrong becomes an error."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
