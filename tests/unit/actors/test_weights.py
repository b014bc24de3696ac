"""Buckets of weights: whole tensors in order, verified by digest, refused when damaged."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights.buckets import SharedBuffer, bucket_bytes, layout, plan_buckets, read_bucket, verify, write_bucket
from dvpo_ray.errors import DamagedWeightsError, WeightSyncError
from dvpo_ray.types import TensorSpec, WeightBucket

TENSORS = {
    "a": torch.randn(3, 5).bfloat16(),
    "b.weight": torch.randn(7),
    "scalar": torch.tensor(2.5),
    "c": torch.randn(4, 2).half().t(),
}
SPECS = tuple(TensorSpec.of(name, tensor) for name, tensor in TENSORS.items())


def bucket_of(memory: SharedBuffer, tensors: dict[str, torch.Tensor]) -> WeightBucket:
    size = layout(SPECS)[1]
    digest = write_bucket(memory.bytes(size), SPECS, tensors)
    return WeightBucket(1, 0, 1, SPECS, size, digest, memory.path)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(1, 500))
def test_buckets_hold_every_tensor_once_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    specs = [TensorSpec(f"t{i}", "bfloat16", (n,)) for i, n in enumerate(sizes)]
    buckets = plan_buckets(specs, limit)
    assert [spec for bucket in buckets for spec in bucket] == specs
    for bucket in buckets:
        assert layout(bucket)[1] <= limit or len(bucket) == 1 or all(spec.shape == (0,) for spec in bucket[1:])


@pytest.mark.parametrize("in_shared_memory", [True, False])
def test_what_is_written_is_read(in_shared_memory: bool) -> None:
    memory = SharedBuffer()
    bucket = bucket_of(memory, TENSORS)
    if not in_shared_memory:
        bucket = replace(bucket, path="", data=np.frombuffer(bytearray(Path(bucket.path).read_bytes()), np.uint8))
    verify(bucket)
    found = dict(read_bucket(bucket_bytes(bucket), bucket.tensors))
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)
    again = bucket_of(memory, TENSORS)
    assert again.digest == bucket.digest
    assert bucket_of(memory, TENSORS | {"b.weight": torch.zeros(7)}).digest != bucket.digest
    memory.close()


def test_damage_is_refused() -> None:
    memory = SharedBuffer()
    bucket = bucket_of(memory, TENSORS)
    with Path(bucket.path).open("r+b") as file:
        file.seek(bucket.bytes // 2)
        file.write(b"\xff\x00\xff\x00")
    with pytest.raises(DamagedWeightsError, match="bucket 1 of 1 of weights 1 is damaged"):
        verify(bucket)
    bucket = bucket_of(memory, TENSORS)
    with pytest.raises(DamagedWeightsError, match="is damaged"):
        verify(replace(bucket, bytes=bucket.bytes + 1))
    memory.close()
    with pytest.raises(DamagedWeightsError, match="cannot be read"):
        verify(bucket)


def test_a_buffer_grows_keeps_its_name_and_goes_with_its_process() -> None:
    memory = SharedBuffer()
    path = memory.path
    memory.bytes(10)[:] = 1
    memory.bytes(10_000)[:] = 2
    assert memory.path == path
    assert Path(path).read_bytes()[:10_000] == b"\x02" * 10_000
    assert f"/{os.getpid()}/" in path
    memory.close()


def test_misshapen_tensors_are_refused() -> None:
    memory = SharedBuffer()
    with pytest.raises(WeightSyncError, match="'a' has 2 bytes, expected 30"):
        bucket_of(memory, TENSORS | {"a": torch.zeros(1, dtype=torch.bfloat16)})
    memory.close()
