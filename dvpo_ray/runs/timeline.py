"""The timeline of a run: what each stage did when, in Chrome-trace format (opens in Perfetto)."""

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
