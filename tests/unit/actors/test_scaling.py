"""Decisions on the number of replicas."""

from __future__ import annotations

from actors.scorer.scaling import Load, least_loaded, queue_age, to_remove


def test_work_goes_to_the_least_loaded_and_to_the_first_of_equals() -> None:
    assert least_loaded([Load([1.0, 2.0]), Load([3.0]), Load([0.0])]) == 1


def test_only_work_that_no_replica_has_begun_waits() -> None:
    assert queue_age([Load([1.0]), Load([])], now=100.0) == 0.0
    assert queue_age([Load([1.0, 40.0, 90.0]), Load([2.0, 30.0])], now=100.0) == 70.0


def test_a_replica_leaves_when_idle_for_long_but_never_below_the_least() -> None:
    idle, busy = Load(idle_since=10.0), Load([5.0], idle_since=None)
    assert to_remove([busy, idle, idle], now=80.0, least=1, idle_s=60.0) == 2
    assert to_remove([idle, busy], now=80.0, least=1, idle_s=60.0) == 0
    assert to_remove([busy, idle], now=60.0, least=1, idle_s=60.0) is None
    assert to_remove([idle, idle], now=80.0, least=2, idle_s=60.0) is None
