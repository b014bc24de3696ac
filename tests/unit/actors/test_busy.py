"""Busy time: overlapping work counts once."""

from __future__ import annotations

import pytest

from actors.cluster import busy


def test_overlapping_work_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(busy.time, "monotonic", lambda: now)
    clock = busy.BusyClock()
    clock.enter()
    now = 102.0
    clock.enter()
    now = 103.0
    clock.leave()
    now = 105.0
    assert clock.seconds == pytest.approx(5.0), "work under way counts"
    clock.leave()
    now = 110.0
    assert clock.seconds == pytest.approx(5.0)
    with clock:
        now = 111.0
    assert clock.seconds == pytest.approx(6.0)


def test_a_listener_is_told_of_all_busy_time_though_work_never_ceases(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = 100.0, []
    monkeypatch.setattr(busy.time, "monotonic", lambda: now)
    clock = busy.BusyClock(told.append)
    clock.enter()
    for _ in range(3):
        clock.enter()
        now += 2.0
        clock.leave()
    assert told == [2.0, 2.0, 2.0] and clock.seconds == pytest.approx(6.0)
