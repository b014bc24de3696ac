"""Code of others is interrupted when it takes too long, and what comes after it is not."""

from __future__ import annotations

import time

import pytest

from dvpo_ray.io import time_limit
from dvpo_ray.io.time_limit import OutOfTimeError, within


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "PERIOD_S", 0.01)
    monkeypatch.setattr(time_limit, "within", time_limit.Watchdog().within)


def forever() -> None:
    while True:
        pass


def test_what_ends_in_time_gives_what_it_gives() -> None:
    assert within(60.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(60.0, lambda: 1 / 0)


def test_what_never_ends_is_interrupted() -> None:
    began = time.monotonic()
    with pytest.raises(OutOfTimeError):
        time_limit.within(0.05, forever)
    assert time.monotonic() - began < 30


def test_an_interruption_that_is_ignored_is_told_all_the_same_and_hits_nothing_later() -> None:
    def stubborn() -> int:
        try:
            forever()
        except OutOfTimeError:
            return 7
        return 8

    with pytest.raises(OutOfTimeError):
        time_limit.within(0.05, stubborn)
    assert time_limit.within(60.0, lambda: sum(range(10**5))) == sum(range(10**5))
