"""Means and whitening over the active positions of a padded batch, exact across processes.

Legend: x_bt values of B answers at T positions; mask_bt 1 where a response token stands, 0 on padding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# Standard deviations up to this are rounding: relative to the mean (float32 rounds at 6e-8, and the root of a difference of sums
# is half as exact as the sums), and absolute.
SPREAD, TINY = 1e-6, 1e-8


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError naming every shape unless all tensors have the same one."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}")


def moments(x_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Sum, sum of squares and count over active positions, float64 [3].

    They add up across micro-batches and ranks, so an all-reduce makes whitening exact over the global batch.
    """
    check_same_shape(x=x_bt, mask=mask_bt)
    active = x_bt.double() * mask_bt
    return torch.stack([active.sum(), (active**2).sum(), mask_bt.double().sum()])


def whiten(x_bt: Tensor, mask_bt: Tensor, sums: Tensor, mode: Literal["full", "scale", "none"]) -> Tensor:
    """Normalise active positions by global ``moments``; padding becomes 0, and so does a batch without spread.

    Where all values are equal but for rounding there is nothing to tell them apart by, and division by what rounding left would
    make advantages of any size.

    Args:
        x_bt: values [B, T].
        mask_bt: active positions [B, T].
        sums: what ``moments`` gave, added over the global batch [3].
        mode: ``full`` subtracts the mean and divides by the standard deviation, ``scale`` only divides, ``none`` neither.
    """
    if mode == "none":
        return x_bt * mask_bt
    count = sums[2].clamp(min=1)
    mean = sums[0] / count
    std = (sums[1] / count - mean**2).clamp(min=0).sqrt()
    if std <= SPREAD * mean.abs() + TINY:
        return torch.zeros_like(x_bt)
    shift = mean if mode == "full" else torch.zeros_like(mean)
    return ((x_bt.double() - shift) / std).to(x_bt.dtype) * mask_bt
