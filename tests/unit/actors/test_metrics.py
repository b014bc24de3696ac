"""What a process sends to Ray's metrics, seen at the border to Ray."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from actors.cluster import metrics
from dvpo_ray.runs.prometheus import BUSY, ENGINE_FENCED

Sent = SimpleQueue[tuple[str, float, dict[str, str]]]
KL, FENCED = "dvpo_kl_per_token", ENGINE_FENCED.name


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Everything that is given to Ray, in order."""
    found: Sent = SimpleQueue()

    class Recorder:
        def __init__(self, name: str) -> None:
            self._name = name

        def set(self, value: float, labels: dict[str, str]) -> None:
            found.put((self._name, value, labels))

        inc = set

    monkeypatch.setattr(metrics, "_sender", Recorder)
    monkeypatch.setattr(metrics, "GAUGES", metrics.Gauges())
    return found


def names_until(sent: Sent, name: str, times: int) -> list[str]:
    """Names that are sent until one was sent so often."""
    names: list[str] = []
    while names.count(name) < times:
        names.append(sent.get(timeout=30)[0])
    return names


def test_a_step_is_shown_under_the_names_of_the_catalogue(sent: Sent) -> None:
    metrics.RayTracker("mine").log(3, {"kl/per_token": 0.5, "ledger/trained": 32.0, "unknown": 1.0})
    assert sent.get(timeout=1) == ("dvpo_rows", 32.0, {"run": "mine", "state": "trained"})
    assert sent.get(timeout=1) == (KL, 0.5, {"run": "mine"})
    assert sent.empty()


def test_gauges_are_said_again_until_their_run_has_ended(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray forgets what is not said again: a run that stalls would be seen no more."""
    monkeypatch.setattr(metrics, "REFRESH_S", 0.01)
    tracker = metrics.RayTracker("mine")
    tracker.log(0, {"kl/per_token": 0.5})
    metrics.show(ENGINE_FENCED, 1)
    assert names_until(sent, KL, 3).count(FENCED) >= 1
    tracker.close()
    # A round that had begun may still say it once.
    names_until(sent, FENCED, 3)
    assert KL not in names_until(sent, FENCED, 3)


def test_counters_count_only_what_happened(sent: Sent) -> None:
    metrics.busy_counter("rollout")(0.0)
    metrics.count(BUSY, 1.5, stage="scorer")
    assert sent.get(timeout=1) == ("dvpo_busy_seconds_total", 1.5, {"actor": "driver", "stage": "scorer"})
    assert sent.empty()
