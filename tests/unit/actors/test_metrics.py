"""What a process sends to Ray's metrics, seen at the border to Ray."""

from __future__ import annotations

from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from actors.cluster import metrics
from dvpo_ray.runs.prometheus import BUSY, ENGINE_FENCED

Sent = SimpleQueue[tuple[str, float, dict[str, str]]]
KL, FENCED = "dvpo_kl_per_token", ENGINE_FENCED.name


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """Everything that is given to Ray, in order."""
    found: Sent = SimpleQueue()

    class Recorder:
        def __init__(self, name: str) -> None:
            self._name = name

        def set(self, value: float, labels: dict[str, str]) -> None:
            found.put((self._name, value, labels))

        inc = set

    gauges = metrics.Gauges()
    monkeypatch.setattr(metrics, "_sender", Recorder)
    monkeypatch.setattr(metrics, "GAUGES", gauges)
    yield found
    # Its thread lives on, and would say them to the next test.
    gauges.forget("actor", metrics.DRIVER)
    gauges.forget("run", "mine")


def said(sent: Sent, label: str, value: str) -> list[tuple[str, float, dict[str, str]]]:
    """What has been sent under a label. Gauges that other tests have shown are said again meanwhile."""
    return [one for one in (sent.get() for _ in range(sent.qsize())) if one[2].get(label) == value]


def names_until(sent: Sent, name: str, times: int) -> list[str]:
    """Names that are sent until one was sent so often."""
    names: list[str] = []
    while names.count(name) < times:
        names.append(sent.get(timeout=30)[0])
    return names


def test_a_step_is_shown_under_the_names_of_the_catalogue(sent: Sent) -> None:
    metrics.RayTracker("mine").log(3, {"kl/per_token": 0.5, "ledger/trained": 32.0, "unknown": 1.0})
    assert said(sent, "run", "mine") == [(KL, 0.5, {"run": "mine"}), ("dvpo_rows", 32.0, {"run": "mine", "state": "trained"})]


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
    counted = [one for one in said(sent, "actor", "driver") if "stage" in one[2]]
    assert counted == [("dvpo_busy_seconds_total", 1.5, {"actor": "driver", "stage": "scorer"})]
