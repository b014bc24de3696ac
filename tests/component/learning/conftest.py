"""Fixtures of tests on learner ranks."""

from __future__ import annotations

import pytest


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that are run one after the other: each has its own sums, and as many micro-batches as any could have."""
    for learner in ("policy", "value"):
        monkeypatch.setattr(f"actors.learner.{learner}.all_reduce", dict)
    monkeypatch.setattr("actors.learner.rank.all_reduce", lambda values, operation: dict.fromkeys(values, 9.0))
