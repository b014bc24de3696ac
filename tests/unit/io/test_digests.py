"""Digests of bytes under way: any change shows, wherever it is, in main memory and on a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dvpo_ray.io.digests import CHUNK, SUMS, WORDS, digest, hash_in_place

KINDS = pytest.mark.parametrize("hashed", [digest, hash_in_place])
LONG = 4 * WORDS * (SUMS + 1) + 5
BYTES = torch.randint(0, 256, (LONG,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@cache
def of_bytes(hashed: Callable[[Tensor], str]) -> str:
    """The digest of the long ones."""
    return hashed(BYTES)


@KINDS
@given(st.binary(max_size=300), st.data())
def test_every_altered_byte_and_every_length_shows(hashed: Callable[[Tensor], str], content: bytes, data: st.DataObject) -> None:
    one = torch.tensor(list(content), dtype=torch.uint8)
    assert hashed(one) == hashed(one.clone())
    assert hashed(torch.cat([one, torch.zeros(1, dtype=torch.uint8)])) != hashed(one)
    if content:
        where, change = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
        other = one.clone()
        other[where] ^= change
        assert hashed(other) != hashed(one)


@KINDS
@pytest.mark.parametrize("where", [0, CHUNK - 1, CHUNK, 4 * WORDS * SUMS - 1, 4 * WORDS * SUMS, LONG - 1])
def test_long_ones_are_read_to_their_end(hashed: Callable[[Tensor], str], where: int) -> None:
    other = BYTES.clone()
    other[where] ^= 1
    assert hashed(other) != of_bytes(hashed)


@KINDS
def test_order_and_signs_show(hashed: Callable[[Tensor], str]) -> None:
    """Words that change places, and pairs of flipped signs, whose plain sums are the same."""
    words = BYTES[: 4 * WORDS].clone()
    swapped = torch.cat([words[4:8], words[:4], words[8:]])
    flipped = words.clone()
    flipped[3] ^= 0x80
    flipped[7] ^= 0x80
    assert len({hashed(words), hashed(swapped), hashed(flipped)}) == 3


def test_a_tensor_that_is_not_aligned_can_be_read_in_place() -> None:
    assert hash_in_place(BYTES[1:4097]) == hash_in_place(BYTES[1:4097].clone())
