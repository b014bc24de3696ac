"""Digests of weights under way: they find damage, not malice, and are computed where the bytes are.

Bytes in main memory are hashed by XXH3, an order of magnitude faster than sha256. Bytes on a GPU stay there: they are read as
numbers of 32 bits, multiplied by random numbers of 64 and added up modulo 2^64 ("multilinear hashing", Thorup 2015,
arXiv 1504.06804, section 3), a piece at a time.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor

CHUNK = 8 * 2**20
# Words of 32 bits that share a sum, and sums computed at once: the bytes take twice their room while they are read.
WORDS = 2**14
SUMS = 2**9


def digest(data: Tensor) -> str:
    """Hex digest of a contiguous uint8 tensor [bytes]. Those of main memory and of a GPU cannot be compared."""
    return hash_in_memory(data.numpy()) if data.device.type == "cpu" else hash_in_place(data)


def hash_in_memory(data: Any) -> str:
    """XXH3 of bytes (buffer protocol) over the digests of their chunks of 8 MiB, hashed on all cores."""
    view = memoryview(data)
    starts = range(0, len(view), CHUNK)
    if len(starts) <= 1:
        return xxhash.xxh3_128_hexdigest(view)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        joined = b"".join(threads.map(lambda start: xxhash.xxh3_128_digest(view[start : start + CHUNK]), starts))
    return xxhash.xxh3_128_hexdigest(joined)


def hash_in_place(data: Tensor) -> str:
    """XXH3 over the length and the sums, computed on the tensor's device."""
    factors = _factors(data.device)
    piece = 4 * WORDS * SUMS
    hashed = xxhash.xxh3_128(str(data.numel()).encode())
    for start in range(0, data.numel(), piece):
        part = data[start : start + piece]
        words = F.pad(part, (0, -part.numel() % (4 * WORDS))).view(torch.int32).view(-1, WORDS).long()
        hashed.update((words * factors).sum(dim=1).cpu().numpy().tobytes())
    return hashed.hexdigest()


@lru_cache
def _factors(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.randint(0, 2**32, (WORDS,), generator=generator) for _ in range(2))
    return (low + (high << 32)).to(device)
