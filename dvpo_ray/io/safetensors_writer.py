"""Safetensors files written straight from live tensors: nothing is copied first, and the digest is made on the way.

The format is that of the safetensors library, which reads them back.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dvpo_ray.io.direct_file import DirectFile
from dvpo_ray.io.disk import writing

PIECE = 16 * 2**20
NAMES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int64: "I64",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """Write tensors and text facts, flushed to the disk; returns the file's hex sha256.

    Raises:
        DiskFullError: there is no room.
    """
    entries: dict[str, object] = {"__metadata__": dict(facts)}
    position = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with writing(path), DirectFile(path) as file:
        for piece in (struct.pack("<Q", len(text)), text):
            file.write(piece)
            digest.update(piece)
        for tensor in tensors.values():
            for part in tensor.detach().contiguous().flatten().view(torch.uint8).split(PIECE):
                data = part.cpu().numpy().data
                file.write(data)
                digest.update(data)
    return digest.hexdigest()
