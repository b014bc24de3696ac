"""Cutting a reader's parameters into the shards that FSDP2 keeps on each rank.

Legend: a parameter [R, ...] of N elements lies on W ranks as consecutive blocks of ceil(R / W) rows; the last blocks may be
shorter or empty. A block is a range of the flattened parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from dvpo_ray.errors import ModelError


class Root(nn.Module):
    """Around a whole reader, so that all work with its weights runs within one forward pass, in which FSDP2 gathers them."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.reader = reader

    def forward(self, work: Callable[..., Any], *given: Any) -> Any:
        """What ``work`` makes of ``given``."""
        made = work(*given)
        # A write into a view would lose the hook that gathers weights for the backward pass.
        return made.clone() if isinstance(made, Tensor) and made._is_view() else made


def shard(reader: nn.Module, compute: torch.dtype, mesh: DeviceMesh) -> Root:
    """Shard a reader over the ranks of a mesh: each of its model's layers by itself, and all else together.

    Trained parameters become float32, which the optimizer steps, and are gathered in ``compute``; others keep their type.
    Gradients are summed over ranks, in float32.

    Raises:
        ModelError: the model has a parameter without dimensions, which cannot be cut.
    """
    _check_dimensions(reader)
    for parameter in reader.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    mixed = compute != torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=compute if mixed else None, reduce_dtype=torch.float32 if mixed else None, cast_forward_inputs=False
    )
    for layer in list(layers(reader)):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    root = Root(reader)
    fully_shard(root, mesh=mesh, mp_policy=policy)
    for part in sharded_parts(root):
        # Gloo can neither average nor multiply before it sums.
        part.set_force_sum_reduction_for_comms(True)
        part.set_gradient_divide_factor(1.0)
    return root


def layers(reader: Any) -> Iterator[nn.Module]:
    """The modules that a model's class says must stay whole, which are its layers; of nested ones the outermost."""
    kinds = set(getattr(reader.model, "_no_split_modules", None) or ())
    taken: list[str] = []
    for name, module in reader.model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in taken)
        if type(module).__name__ in kinds and not inside:
            taken.append(name)
            yield module


def sharded_parts(root: nn.Module) -> list[FSDPModule]:
    """The root and the layers, which are gathered each by itself."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def drop_unreduced(part: FSDPModule) -> None:
    """Forget the whole gradients that a rank has summed and not yet reduced; FSDP2 has no public way to."""
    for group in part._get_fsdp_state()._fsdp_param_groups:
        for parameter in group.fsdp_params:
            parameter.unsharded_accumulated_grad = None
            if hasattr(parameter, "_unsharded_param"):
                parameter.unsharded_param.grad = None


def local(tensor: Tensor) -> Tensor:
    """The block of a sharded tensor that this rank holds: a view, without gradient."""
    assert isinstance(tensor, DTensor)
    return tensor.detach().to_local()


def first_element(tensor: Tensor) -> int:
    """Where this rank's block begins in the flattened tensor."""
    assert isinstance(tensor, DTensor)
    mesh, rows = tensor.device_mesh, tensor.shape[0]
    block = -(-rows // mesh.size())
    return min(rows, block * mesh.get_local_rank()) * (tensor.numel() // max(1, rows))


def _check_dimensions(reader: nn.Module) -> None:
    scalars = [name for name, parameter in reader.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise ModelError(
            f"parameter '{scalars[0]}' has no dimension to be sharded by ({len(scalars)} like it): nothing was trained; set "
            "learner.backend.type = 'deepspeed'"
        )
