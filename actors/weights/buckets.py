"""Weights on their way from the learner to the engines, a bucket at a time.

A bucket is some whole tensors, one after another, without a header; what lies where travels beside it as plain numbers. It is
kept in anonymous shared memory, which has a name only while its process lives: nothing stays behind when one is killed, and
the size of ``/dev/shm`` does not matter. Buckets that are broadcast (``actors.weights.broadcast``) lie on the learner's device.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.errors import DamagedWeightsError, WeightSyncError
from dvpo_ray.io.digests import digest, hash_in_memory
from dvpo_ray.types import TensorSpec, WeightBucket

ALIGNMENT = 64
_MAPPED: dict[tuple[int, int, int], mmap.mmap] = {}


def spec_bytes(spec: TensorSpec) -> int:
    """A tensor's size in bytes."""
    return math.prod(spec.shape) * int(getattr(torch, spec.dtype).itemsize)


def plan_buckets(specs: Iterable[TensorSpec], limit: int) -> list[tuple[TensorSpec, ...]]:
    """Cut tensors, in their order, into buckets of at most ``limit`` bytes; a larger tensor has a bucket of its own."""
    buckets: list[list[TensorSpec]] = []
    room = 0
    for spec in specs:
        size = _aligned(spec_bytes(spec))
        if size > room or not buckets:
            buckets.append([])
            room = max(limit, size)
        buckets[-1].append(spec)
        room -= size
    return [tuple(bucket) for bucket in buckets]


def layout(specs: Sequence[TensorSpec]) -> tuple[list[int], int]:
    """Offset of each tensor in its bucket, and the bucket's size, in bytes."""
    ends = np.cumsum([0] + [_aligned(spec_bytes(spec)) for spec in specs])
    return [int(start) for start in ends[:-1]], int(ends[-1])


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class SharedBuffer:
    """Anonymous shared memory of one process, which others on the machine open by ``path`` while it lives.

    It grows when needed and is kept mapped, because touching fresh pages costs several times more than writing old ones.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("dvpo-weights", os.MFD_CLOEXEC)
        self._map: mmap.mmap | None = None

    @property
    def path(self) -> str:
        """Where other processes of the same user find it."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def bytes(self, size: int) -> Tensor:
        """The first ``size`` bytes as a uint8 tensor; it must not be kept when the buffer grows."""
        if self._map is None or len(self._map) < size:
            os.ftruncate(self._file, size)
            self._map = mmap.mmap(self._file, size)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=size)

    def close(self) -> None:
        """Give the memory back."""
        self._map = None
        os.close(self._file)


def write_bucket(buffer: Tensor, specs: Sequence[TensorSpec], tensors: Mapping[str, Tensor]) -> str:
    """Copy tensors into a bucket of ``layout(specs)``; returns its digest.

    Raises:
        WeightSyncError: a tensor is not of the size its spec says.
    """
    for spec, start in zip(specs, layout(specs)[0], strict=True):
        flat = tensors[spec.name].detach().contiguous().flatten().view(torch.uint8)
        if flat.numel() != spec_bytes(spec):
            raise WeightSyncError(f"tensor '{spec.name}' has {flat.numel()} bytes, expected {spec_bytes(spec)}")
        buffer[start : start + spec_bytes(spec)].copy_(flat)
    return digest(buffer)


def read_bucket(data: Any, specs: Sequence[TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a bucket's tensors, views of ``data``: a uint8 tensor, or anything with the buffer protocol."""
    starts, size = layout(specs)
    buffer = data if isinstance(data, Tensor) else torch.frombuffer(data, dtype=torch.uint8, count=size)
    for spec, start in zip(specs, starts, strict=True):
        yield spec.name, buffer[start : start + spec_bytes(spec)].view(getattr(torch, spec.dtype)).view(spec.shape)


def verify(bucket: WeightBucket) -> None:
    """Check a bucket against its digest.

    Raises:
        DamagedWeightsError: it is missing, cut short or altered.
    """
    try:
        data = bucket_bytes(bucket)
        size = min(len(data), bucket.bytes)
        found = hash_in_memory(np.frombuffer(data, np.uint8, count=size))
    except (OSError, ValueError) as error:
        raise DamagedWeightsError(f"{bucket} cannot be read: {error}") from error
    if size != bucket.bytes or found != bucket.digest:
        raise DamagedWeightsError(
            f"{bucket} is damaged: {size} bytes, digest {found[:16]}..., expected {bucket.bytes} bytes, {bucket.digest[:16]}...; "
            "it was refused"
        )


def bucket_bytes(bucket: WeightBucket) -> Any:
    """The bytes of a bucket, wherever they are (buffer protocol)."""
    return mapped(bucket.path) if bucket.data is None else bucket.data.data


def mapped(path: str) -> mmap.mmap:
    """A file's bytes, shared; nothing may write to them. The last one mapped stays so: mapping costs more than reading."""
    with Path(path).open("r+b") as file:
        facts = os.fstat(file.fileno())
        key = (facts.st_dev, facts.st_ino, facts.st_size)
        if key not in _MAPPED:
            _MAPPED.clear()
            _MAPPED[key] = mmap.mmap(file.fileno(), 0)
        return _MAPPED[key]
