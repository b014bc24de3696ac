"""Published weights: a safetensors file in shared memory with a digest, written by a learner and read by engines.

Slots are written in turn and kept mapped, because touching fresh shared-memory pages costs several times more than
overwriting old ones. With n slots, an engine must have taken a version before the n-th after it is published; a loop that syncs
after every step needs one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from dvpo_ray.errors import WeightSyncError
from dvpo_ray.rows import PublishedWeights

HASH_CHUNK = 32 * 2**20
_SAFETENSORS_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}


def tree_sha256(data: memoryview | mmap.mmap) -> str:
    """sha256 over the sha256 digests of 32 MiB chunks, hashed on all cores."""
    view = memoryview(data)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        digests = threads.map(
            lambda start: hashlib.sha256(view[start : start + HASH_CHUNK]).digest(), range(0, max(len(view), 1), HASH_CHUNK)
        )
        joined = b"".join(digests)
    view.release()
    return hashlib.sha256(joined).hexdigest()


class WeightPublisher:
    """Writes successive versions of one model's tensors as safetensors files."""

    def __init__(self, folder: Path, layout: Mapping[str, Tensor], slots: int = 1) -> None:
        """``layout`` gives name, type and shape of every tensor; its values are not read."""
        self._header, self._offsets, self._bytes = _safetensors_header(layout)
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"slot-{i}.safetensors" for i in range(slots)]
        self._maps: list[mmap.mmap | None] = [None] * slots

    def publish(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> PublishedWeights:
        """Write one version and its digest; all tensors of the layout must come, in any order."""
        slot = version % len(self._paths)
        target = self._map(slot)
        missing = set(self._offsets)
        for name, tensor in tensors:
            start, end = self._offsets[name]
            flat = tensor.detach().contiguous().flatten().view(torch.uint8)
            if flat.numel() != end - start:
                raise WeightSyncError(f"tensor '{name}' has {flat.numel()} bytes, the layout says {end - start}")
            torch.frombuffer(target, dtype=torch.uint8, count=end - start, offset=start).copy_(flat)
            missing.discard(name)
        if missing:
            raise WeightSyncError(f"version {version} lacks {len(missing)} tensors, for example '{min(missing)}'")
        return PublishedWeights(version, str(self._paths[slot]), tree_sha256(target), self._bytes)

    def close(self) -> None:
        """Remove the files."""
        self._maps = [None] * len(self._paths)
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _map(self, slot: int) -> mmap.mmap:
        existing = self._maps[slot]
        if existing is not None:
            return existing
        with self._paths[slot].open("w+b") as file:
            file.truncate(self._bytes)
            mapped = mmap.mmap(file.fileno(), self._bytes)
        mapped[: len(self._header)] = self._header
        self._maps[slot] = mapped
        return mapped


def verify_published(weights: PublishedWeights) -> None:
    """Check a published file against its digest, before any engine is touched.

    Raises:
        WeightSyncError: the file is missing, cut short or altered.
    """
    path = Path(weights.path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found, size = tree_sha256(data), len(data)
    except (OSError, ValueError) as error:
        raise WeightSyncError(f"weights of version {weights.version} cannot be read from {path}: {error}") from error
    if size != weights.bytes or found != weights.sha256:
        raise WeightSyncError(
            f"weights of version {weights.version} in {path} are damaged: {size} bytes, digest {found[:16]}..., expected "
            f"{weights.bytes} bytes, {weights.sha256[:16]}...; they were refused and the engine keeps the version it serves"
        )


def _safetensors_header(layout: Mapping[str, Tensor]) -> tuple[bytes, dict[str, tuple[int, int]], int]:
    """Header bytes, absolute byte range of each tensor, and the file's size (format: docs of the safetensors library)."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ranges: dict[str, tuple[int, int]] = {}
    position = 0
    for name, tensor in layout.items():
        size = tensor.numel() * tensor.element_size()
        ranges[name] = (position, position + size)
        entries[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    header = struct.pack("<Q", len(text)) + text
    return header, {name: (len(header) + a, len(header) + b) for name, (a, b) in ranges.items()}, len(header) + position
