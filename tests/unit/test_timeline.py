"""Idle shares and the trace."""

from __future__ import annotations

import pytest

from dvpo_ray.timeline import Timeline


def test_idle_share_counts_overlapping_spans_once() -> None:
    timeline = Timeline(100.0)
    timeline.add("rollout", 100, 104)
    timeline.add("rollout", 102, 106, track="rollout 1", step=1)
    timeline.add("rollout", 108, 120)
    timeline.add("learn", 90, 101)
    assert timeline.idle_shares(100, 110) == pytest.approx({"rollout": 0.2, "learn": 0.9})


def test_the_trace_is_in_order_and_in_microseconds() -> None:
    timeline = Timeline(10.0)
    timeline.add("b", 12, 12.5, step=3)
    timeline.add("a", 11, 12)
    trace = timeline.chrome_trace()["traceEvents"]
    assert [(span["name"], span["ts"], span["dur"]) for span in trace] == [("a", 1_000_000, 1_000_000), ("b", 2_000_000, 500_000)]
    assert trace[1]["args"] == {"step": 3} and trace[1]["tid"] == "b"
