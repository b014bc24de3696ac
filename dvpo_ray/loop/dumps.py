"""Rows of a step whose update was withheld, kept so that it can be looked at: plain NumPy arrays, no pickles."""

from __future__ import annotations

import math
import operator
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dvpo_ray.errors import DataError, DiskFullError
from dvpo_ray.io.disk import writing
from dvpo_ray.types import RAGGED_FIELDS, Ragged, RowId, ScoredBatch

CHANNEL = "channels."
INFLATION = 1100  # deflate makes at most 1032 bytes of one


def write_dump(path: Path, scored: ScoredBatch, step: int, beta: float) -> Path:
    """Write scored rows with the number of their step (from 0) and the KL coefficient."""
    arrays: dict[str, Any] = {"step": np.array(step), "beta": np.array(beta)}
    for name in RAGGED_FIELDS:
        ragged = getattr(scored, name)
        arrays |= {f"{name}.flat": ragged.flat, f"{name}.lengths": ragged.lengths}
    for name, channel in scored.channels.items():
        arrays |= {f"{CHANNEL}{name}.flat": channel.flat, f"{CHANNEL}{name}.lengths": channel.lengths}
    arrays |= {"rows": np.array([str(row) for row in scored.rows]), "end_states": np.array(scored.end_states)}
    arrays |= {"group_ids": scored.group_ids, "scorer_version": np.array(scored.scorer_version)}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing(path):
            np.savez_compressed(path, allow_pickle=False, **arrays)
    except DiskFullError:
        path.unlink(missing_ok=True)
        raise
    return path


def read_dump(path: Path) -> tuple[ScoredBatch, int, float]:
    """(rows, step, KL coefficient) of a dump.

    Raises:
        DataError: the file is none, or damaged.
    """
    try:
        _check_shapes(path)
        with np.load(path, allow_pickle=False) as arrays:
            fields: dict[str, Any] = {name: _ragged(arrays, name) for name in RAGGED_FIELDS}
            names = [name.removesuffix(".flat") for name in arrays.files if name.startswith(CHANNEL) and name.endswith(".flat")]
            fields |= {
                "rows": tuple(RowId.parse(str(text)) for text in arrays["rows"]),
                "end_states": tuple(str(text) for text in arrays["end_states"]),
                "group_ids": arrays["group_ids"],
                "scorer_version": operator.index(arrays["scorer_version"].item()),
                "channels": {name.removeprefix(CHANNEL): _ragged(arrays, name) for name in names},
            }
            step, beta = operator.index(arrays["step"].item()), float(arrays["beta"].item())
            if step < 0:
                raise ValueError(f"step is {step}")
            return ScoredBatch(**fields), step, beta
    except Exception as error:  # numpy and zipfile raise many unrelated types for damaged bytes
        raise DataError(f"'{path}' is no dump of rows: {error!r}; name a file in a run's `dumps` folder") from error


def _ragged(arrays: Any, name: str) -> Ragged:
    ragged = Ragged(arrays[f"{name}.flat"], arrays[f"{name}.lengths"])
    if ragged.flat.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {ragged.flat.dtype}, expected numbers")
    return ragged


def _check_shapes(path: Path) -> None:
    """Refuse arrays that claim to be larger than their bytes can be, before memory is taken for them."""
    with zipfile.ZipFile(path) as packed:
        claimed = sum(member.file_size for member in packed.infolist())
        if claimed > INFLATION * path.stat().st_size:
            raise ValueError(f"its arrays claim {claimed:,} bytes")
        for member in packed.infolist():
            with packed.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"{member.filename} is of format {version}")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"{member.filename} claims the shape {shape}")
