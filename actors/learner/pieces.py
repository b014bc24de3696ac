"""The state of training in a checkpoint: written by every rank, read by any number of ranks of any training backend.

Each rank writes the pieces it owns: ``KEY|PARAMETER|START`` holds elements from START on of the flattened parameter (KEY is
``weight``, ``exp_avg`` or ``exp_avg_sq``, all float32). Reading puts the pieces of all ranks together again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dvpo_ray.errors import CheckpointError

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
SEPARATOR = "|"
LEARNER = "learner"
# (KEY, parameter): (first element, open file, entry) of each piece.
Pieces = dict[tuple[str, str], list[tuple[int, Any, str]]]
# The whole of a parameter's KEY, flat float32, from (KEY, parameter).
ReadWhole = Callable[[str, str], Tensor]


def file_name(rank: int, role: str = LEARNER) -> str:
    """The file that a rank writes into a checkpoint."""
    return f"{role}-{rank:05d}.safetensors"


def piece_name(key: str, parameter: str, start: int) -> str:
    """The entry of a piece."""
    return SEPARATOR.join((key, parameter, str(start)))


def reader_of(folder: Path, role: str, shapes: Mapping[str, Tensor]) -> ReadWhole:
    """What reads whole parameters of a model, and their moments, from what all ranks wrote.

    Args:
        folder: the checkpoint's.
        role: whose files.
        shapes: trained parameters of the model by name, of their whole shapes.

    Raises:
        CheckpointError: the checkpoint is of another model; or, when one is read, pieces are missing or of another type.
    """
    where = find_pieces(folder, role)
    unknown = {name for _, name in where} ^ set(shapes)
    if unknown:
        raise CheckpointError(
            f"checkpoint '{folder}' is of another model: {len(unknown)} parameters differ, for example '{min(unknown)}'"
        )

    def read(key: str, name: str) -> Tensor:
        return joined(where.get((key, name), []), shapes[name].numel(), name, folder)

    return read


def find_pieces(folder: Path, role: str = LEARNER) -> Pieces:
    """Where the pieces of each (key, parameter) lie: (first element, open file, entry).

    Raises:
        CheckpointError: a file is not one that a rank wrote.
    """
    where: Pieces = defaultdict(list)
    with reading(folder):
        for path in sorted(folder.glob(file_name(0, role).replace("00000", "*"))):
            file = safe_open(path, framework="pt", device="cpu")
            for entry in file.keys():  # noqa: SIM118 - safetensors files are no dicts
                parts = entry.split(SEPARATOR)
                if len(parts) == 3:
                    where[parts[0], parts[1]].append((int(parts[2]), file, entry))
    return where


@contextmanager
def reading(folder: Path | str) -> Iterator[None]:
    """Name the checkpoint when one of its files, although it has the sha256 that the manifest names, is not one a rank writes."""
    try:
        yield
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint '{folder}' holds no learner's state: {error!r}; name another checkpoint") from error


def joined(parts: list[tuple[int, Any, str]], size: int, name: str, folder: Path) -> Tensor:
    """All elements of a parameter, float32 [size], from pieces that must follow one another without a gap.

    Raises:
        CheckpointError: they do not.
    """
    whole = torch.empty(size, dtype=torch.float32)
    done = 0
    for start, file, entry in sorted(parts, key=lambda part: part[0]):
        with reading(folder):
            piece = file.get_tensor(entry).flatten()
        if piece.dtype != torch.float32:
            raise CheckpointError(
                f"checkpoint '{folder}' holds '{name}' as {piece.dtype}, expected float32; name another checkpoint"
            )
        if start != done or start + piece.numel() > size:
            break
        whole[start : start + piece.numel()] = piece
        done += piece.numel()
    if done != size:
        raise CheckpointError(f"checkpoint '{folder}' holds {done} of {size} elements of '{name}'")
    return whole
