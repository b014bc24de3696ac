"""Rows of a step whose update was withheld, kept so that it can be looked at: plain NumPy arrays, no pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dvpo_ray.errors import DataError
from dvpo_ray.rows import NAME_FIELDS, RAGGED_FIELDS, Ragged, ScoredBatch


def write_dump(path: Path, scored: ScoredBatch, step: int, beta: float) -> Path:
    """Write scored rows with the number of their step (from 0) and the KL coefficient."""
    arrays: dict[str, Any] = {"step": np.array(step), "beta": np.array(beta)}
    for name in RAGGED_FIELDS:
        ragged = getattr(scored, name)
        arrays |= {f"{name}.flat": ragged.flat, f"{name}.lengths": ragged.lengths}
    arrays |= {name: np.array(getattr(scored, name)) for name in NAME_FIELDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return path


def read_dump(path: Path) -> tuple[ScoredBatch, int, float]:
    """(rows, step, KL coefficient) of a dump.

    Raises:
        DataError: the file is none, or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            fields: dict[str, Any] = {name: Ragged(arrays[f"{name}.flat"], arrays[f"{name}.lengths"]) for name in RAGGED_FIELDS}
            fields |= {name: tuple(str(text) for text in arrays[name]) for name in NAME_FIELDS}
            return ScoredBatch(**fields), int(arrays["step"]), float(arrays["beta"])
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise DataError(f"'{path}' is no dump of rows: {error}") from error
