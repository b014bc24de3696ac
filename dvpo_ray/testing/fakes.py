"""Fakes at the process border: what a stage is given, or gives, without engines, models or Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dvpo_ray.stages import Weights
from dvpo_ray.types import Ragged, RowId, ScoredBatch


def row(name: str) -> RowId:
    """The id of a row that only its name tells from others."""
    return RowId(0, 0, name, 0)


def scored_batch(lengths: Sequence[int], seed: int = 0, prefix: str = "r") -> ScoredBatch:
    """Random scored rows with the given answer lengths."""
    rng = np.random.default_rng(seed)

    def ragged(sizes: Sequence[int], low: int | None = None) -> Ragged:
        rows = [rng.integers(2, 300, n) if low is not None else rng.normal(size=n) for n in sizes]
        return Ragged.of(rows, np.int32 if low is not None else np.float32)

    return ScoredBatch(
        rows=tuple(row(f"{prefix}{i}") for i in range(len(lengths))),
        group_ids=np.arange(len(lengths)),
        prompt_ids=ragged([4 + i % 3 for i in range(len(lengths))], 2),
        response_ids=ragged(lengths, 2),
        log_probs=ragged(lengths),
        versions=Ragged.of([np.zeros(n) for n in lengths], np.int32),
        values=ragged([n + 1 for n in lengths]),
        ref_log_probs=ragged(lengths),
        action_mask=Ragged.of([np.ones(n) for n in lengths], np.bool_),
        end_states=tuple("stop" for _ in lengths),
    )


class FakeEngines:
    """Rollout actors, as far as a trainer knows them."""

    source: Callable[[], Weights] | None = None
