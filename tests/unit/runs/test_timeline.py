"""The trace."""

from __future__ import annotations

from dvpo_ray.runs.timeline import Timeline


def test_the_trace_is_in_order_and_in_microseconds() -> None:
    timeline = Timeline(10.0)
    timeline.add("b", 12, 12.5, step=3)
    timeline.add("a", 11, 12)
    trace = timeline.chrome_trace()["traceEvents"]
    assert [(span["name"], span["ts"], span["dur"]) for span in trace] == [("a", 1_000_000, 1_000_000), ("b", 2_000_000, 500_000)]
    assert trace[1]["args"] == {"step": 3} and trace[1]["tid"] == "b"
