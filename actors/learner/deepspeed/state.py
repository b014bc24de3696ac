"""Where DeepSpeed keeps the float32 weights and Adam's moments of each parameter, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.pieces import MOMENTS, WEIGHT, ReadWhole, piece_name


def live_pieces(weights: Mapping[str, Tensor], optimizer: Any) -> Iterator[tuple[str, Tensor]]:
    """(``KEY|PARAMETER|START``, live float32 tensor) of all that this rank owns."""
    prepare_moments(optimizer)
    for name, parameter in weights.items():
        for key, start, tensor in _owned(parameter, optimizer):
            yield piece_name(key, name, start), tensor


@torch.no_grad()
def load_live(weights: Mapping[str, Tensor], optimizer: Any, read: ReadWhole) -> None:
    """Put whole parameters and moments into this rank's optimizer and model."""
    prepare_moments(optimizer)
    for name, parameter in weights.items():
        whole = {key: read(key, name) for key in (WEIGHT, *MOMENTS)}
        for key, start, tensor in _owned(parameter, optimizer):
            tensor.copy_(whole[key][start : start + tensor.numel()].view_as(tensor))
        _set_model_weight(parameter, whole[WEIGHT])


def prepare_moments(optimizer: Any) -> None:
    """Give every master weight the moments that Adam would make in its first step, so that they can be written and read."""
    adam = inner(optimizer)
    masters = [p for group in adam.param_groups for p in group["params"]]
    masters = getattr(optimizer, "single_partition_of_fp32_groups", masters)
    masters = getattr(optimizer, "fp32_partitioned_groups_flat", masters)
    for master in masters:
        if not adam.state[master]:
            step = torch.zeros((), dtype=torch.float32, device=master.device)
            adam.state[master] = {"step": step} | {key: torch.zeros_like(master) for key in MOMENTS}
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def inner(optimizer: Any) -> Any:
    """The torch optimizer inside DeepSpeed's, or the optimizer itself."""
    return getattr(optimizer, "optimizer", optimizer)


def _owned(parameter: Any, optimizer: Any) -> Iterator[tuple[str, int, Tensor]]:
    """(key, first element, live tensor) of a parameter's float32 weight and moments on this rank; none when others own it."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if hasattr(parameter, "ds_tensor"):
        start = dist.get_rank() * parameter.ds_tensor.numel()
        length = min(parameter.ds_tensor.numel(), parameter.ds_numel - start)
        if length > 0:
            yield WEIGHT, start, safe_get_local_fp32_param(parameter).flatten()[:length]
            for key in MOMENTS:
                yield key, start, safe_get_local_optimizer_state(parameter, key).flatten()[:length]
    elif hasattr(parameter, "_hp_mapping"):
        mapping = parameter._hp_mapping
        if mapping is not None:
            start = mapping.lp_fragment_address.start
            yield WEIGHT, start, mapping.get_hp_fragment()
            for key in MOMENTS:
                yield key, start, mapping.get_optim_state_fragment(key)
    else:
        master = optimizer.master(parameter)
        yield WEIGHT, 0, master.detach()
        for key in MOMENTS:
            yield key, 0, inner(optimizer).state[master][key]


@torch.no_grad()
def _set_model_weight(parameter: Any, whole: Tensor) -> None:
    """The model's own copy, in its own type."""
    if hasattr(parameter, "ds_tensor"):
        size = parameter.ds_tensor.numel()
        start = dist.get_rank() * size
        mine = whole[start : start + size]
        parameter.ds_tensor.data[: mine.numel()].copy_(mine)
    else:
        parameter.data.copy_(whole.view_as(parameter))
