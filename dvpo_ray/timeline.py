"""The timeline of a run: what each stage did when, in Chrome-trace format (opens in Perfetto), and how idle it was."""

from __future__ import annotations

from typing import Any


class Timeline:
    """Spans of stages, in seconds since the epoch. Spans may be added from several threads."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.spans: list[dict[str, Any]] = []

    def add(self, stage: str, start: float, end: float, track: str | None = None, **facts: Any) -> None:
        """One span; spans of one ``track`` (the stage's own unless named) must not overlap."""
        micro = {"ts": round((start - self._began) * 1e6), "dur": round((end - start) * 1e6)}
        self.spans.append({"name": stage, "ph": "X", "pid": 0, "tid": track or stage, "cat": "stage", **micro, "args": facts})

    def chrome_trace(self) -> dict[str, Any]:
        """What a trace viewer reads."""
        return {"traceEvents": sorted(self.spans, key=lambda span: span["ts"])}

    def idle_shares(self, start: float, end: float) -> dict[str, float]:
        """For every stage, the share of the time from ``start`` to ``end`` in which none of its spans ran."""
        first, last = ((moment - self._began) * 1e6 for moment in (start, end))
        return {
            stage: 1.0 - self._busy(stage, first, last) / max(last - first, 1.0)
            for stage in dict.fromkeys(span["name"] for span in self.spans)
        }

    def _busy(self, stage: str, first: float, last: float) -> float:
        """Length of the union of a stage's spans inside a window, in microseconds."""
        total, reached = 0.0, first
        for begin, finish in sorted((s["ts"], s["ts"] + s["dur"]) for s in self.spans if s["name"] == stage):
            begin, finish = max(begin, reached), min(finish, last)
            if finish > begin:
                total += finish - begin
                reached = finish
        return total
