"""A judge, and answers for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvpo_ray.io import http
from tests.support.judges import QUESTIONS, likes_good
from tests.support.services import Service, serving


@pytest.fixture
def service() -> Iterator[Service]:
    """A judge."""
    with serving(likes_good) as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, Path]:
    """Good answers, and bad ones to the same questions; one answer is the same in both."""
    for name in ("good", "bad"):
        rows = [{"id": str(i), "model": name, "prompt": f"say {i}", "answer": f"{name} {i}"} for i in range(QUESTIONS)]
        rows.append({"id": "same", "model": name, "prompt": "say nothing", "answer": ""})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
