"""The report's charts: what metrics declare, drawn by matplotlib as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from dvpo_ray.metrics import Metric, metric_of
from dvpo_ray.report.records import STAGES, RunRecords

Drawing = Callable[[Any], None]
COLOURS = ("#2171b5", "#d95f0e", "#238b45", "#756bb1", "#636363")
OF_VALUE = "Value pretraining: "


def all_charts(records: RunRecords) -> list[dict[str, str]]:
    """Every chart the run has data for: title and SVG."""
    drawings = _declared_charts(records.lines, records.metrics)
    if records.policy_steps:
        drawings["Seconds of each stage"] = _stacked_seconds(records.policy_steps)
    # What the second half shows, too, has the first half's name before it.
    for title, draw in _declared_charts(records.value_lines, records.metrics).items():
        drawings[title if title.startswith(OF_VALUE.rstrip(": ")) else OF_VALUE + title] = draw
    return [{"title": title, "svg": svg(draw)} for title, draw in drawings.items()]


def _declared_charts(rows: Sequence[dict[str, Any]], known: dict[str, Metric]) -> dict[str, Drawing]:
    """What the declarations say of the numbers in rows, by title, in the order of the declarations."""
    order, recorded = list(known), dict.fromkeys(key for row in rows for key in row)
    charts: dict[str, dict[str, str]] = {}
    shown = [(metric, key) for key in recorded if (metric := metric_of(key, known)) is not None and metric.chart]
    for metric, key in sorted(shown, key=lambda pair: order.index(pair[0].key)):
        charts.setdefault(metric.chart, {})[key] = metric.line or key.rpartition("/")[2]
    return {title: _lines(rows, keys) for title, keys in charts.items()}


def _lines(rows: Sequence[dict[str, Any]], keys: dict[str, str]) -> Drawing:
    """A line for each key, over the rows that have it; with error bars where they have its 95% interval."""

    def draw(axes: Any) -> None:
        for colour, (key, label) in zip(cycle(COLOURS), keys.items(), strict=False):
            having = [row for row in rows if key in row]
            steps, numbers = [row["step"] for row in having], [row[key] for row in having]
            low, high = f"{key}_ci95_low", f"{key}_ci95_high"
            if all(low in row and high in row for row in having):
                ends = [[row[key] - row[low] for row in having], [row[high] - row[key] for row in having]]
                axes.errorbar(steps, numbers, yerr=ends, color=colour, marker="o", capsize=4, label=label)
            else:
                axes.plot(steps, numbers, color=colour, label=label)
        axes.set_xlabel("step")
        if len(keys) > 1:
            axes.legend(frameon=False)

    return draw


def _stacked_seconds(rows: Sequence[dict[str, Any]]) -> Drawing:
    def draw(axes: Any) -> None:
        series = [[row[f"seconds/{stage}"] for row in rows] for stage in STAGES]
        axes.stackplot([row["step"] for row in rows], series, labels=STAGES, colors=COLOURS)
        axes.set_xlabel("step")
        axes.legend(frameon=False, ncols=4, loc="upper right")

    return draw


def svg(draw: Drawing, width: float = 5.2, height: float = 2.6) -> str:
    """A drawing on axes as SVG; size in inches."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
