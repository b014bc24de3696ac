"""Checks of scorer refreshes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dvpo_ray.config.refresh import RefreshSettings
from dvpo_ray.rollouts.refresh import ScorerRefresh
from dvpo_ray.testing.settings import assert_members, check_settings
from dvpo_ray.types import RowId, RowOutcome, ScorerVersion

STEPS = 8


def check_refresh(settings: RefreshSettings, rows: Sequence[Sequence[RowOutcome]] | None = None) -> list[ScorerVersion]:
    """Value models that it brings are counted from 1, and told with their folder and the hash of their parameters.

    ``rows`` are the outcomes of each step; without them eight steps of four rows. Returns the value models.

    Raises:
        AssertionError: it is not so.
    """
    check_settings(settings)
    refresh: ScorerRefresh = settings.build()
    assert_members(refresh, ScorerRefresh)
    name = f"{type(refresh).__qualname__}.after"
    found: list[ScorerVersion] = []
    for step, outcomes in enumerate(_rows() if rows is None else rows):
        version = refresh.after(step, tuple(outcomes))
        if version is None:
            continue
        assert isinstance(version, ScorerVersion), f"{name} gives {version!r:.200}, expected a ScorerVersion or None"
        assert version.number == len(found) + 1, f"{name} gives number {version.number} after {len(found)} value models"
        assert version.folder, f"{name} names no folder of value model {version.number}"
        assert re.fullmatch(r"[0-9a-f]{64}", version.parameters_sha256), (
            f"{name} gives parameters_sha256 = '{version.parameters_sha256}', expected that of `dvpo_ray.models.frozen_hash`"
        )
        found.append(version)
    return found


def _rows() -> list[list[RowOutcome]]:
    return [
        [RowOutcome(RowId(step, slot, f"p{slot}", 0), slot, {"checked": 0.1 * slot}, 0.5, 4, "stop") for slot in range(4)]
        for step in range(STEPS)
    ]
