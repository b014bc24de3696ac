"""Writes docs/metrics.md and the table of docs/monitoring.md from the declarations of metrics. Run by `make docs`."""

from __future__ import annotations

import re
from pathlib import Path

from dvpo_ray.metrics import Figure, Gauge, Metric, figures, metrics
from dvpo_ray.runs.prometheus import table

DOCS = Path(__file__).resolve().parents[1] / "docs"
TABLE = re.compile(r"\| name \| kind \|.*?\n\n", re.S)
HEAD = """\
# Metrics

What a run records, and where it is shown. Written by `make docs` from the declarations in the packages' `metrics.py`.

## Of steps and evaluations

`metrics.jsonl` in the run's folder holds a line for every step and every evaluation, with `step`, `time` (seconds since the run
began) and these numbers; trackers get them all under the same names. Metrics of one chart are lines in it.

| metric | unit | meaning | recorded | console | chart of the report | Prometheus |
|---|---|---|---|---|---|---|
"""
FIGURES = """
## Of a result

`result.json` holds these figures among others. The console shows them when a run ends; *card* marks those at the head of the
report.

| figure | called | |
|---|---|---|
"""
OWN = """
## Your own

A metric is declared once; console, report and Prometheus then show it, and nothing else lists it. Settings of a plug-in declare
what runs with them record:

```python
from typing import ClassVar

from dvpo_ray.config.base import Section
from dvpo_ray.metrics import Metric


class BrevitySettings(Section):
    METRICS: ClassVar = (
        Metric(
            "brevity/words",
            "Mean words of an answer.",
            unit="words",
            console="words",
            chart="Answer length (words)",
            gauge="my_words",
        ),
    )
```

A module without settings calls `dvpo_ray.metrics.declare(Metric(...))` when it is imported; that counts in the process which
imported it, so let the recipe's process import it. A key is `group/name`; `group/*` declares all of a group. A number that is
recorded with `brevity/words_ci95_low` and `brevity/words_ci95_high` has error bars. What plug-ins declared is kept beside them in
`declared_metrics.json`, so that a report needs no plug-in. Numbers that nobody declared are recorded and tracked, not shown.
"""


def row(metric: Metric) -> str:
    """A line of the table of metrics."""
    gauge = metric.gauge
    exported = f"`ray_{gauge.name}{{{gauge.label}={metric.series}}}`" if isinstance(gauge, Gauge) else f"`ray_{gauge}`"
    cells = (
        f"`{metric.key}`",
        metric.unit,
        metric.meaning,
        metric.recorded,
        metric.console,
        metric.chart,
        exported if gauge else "",
    )
    return f"| {' | '.join(cells)} |"


def figure_row(figure: Figure) -> str:
    """A line of the table of figures."""
    return f"| `{figure.key}` | {figure.label} | {'card' if figure.card else ''} |"


def page() -> str:
    """The whole of docs/metrics.md."""
    of_steps = "".join(f"{row(metric)}\n" for metric in metrics().values())
    of_results = "".join(f"{figure_row(figure)}\n" for figure in figures().values())
    return HEAD + of_steps + FIGURES + of_results + OWN


def main() -> None:
    """Write both."""
    (DOCS / "metrics.md").write_text(page(), encoding="utf-8")
    monitoring = DOCS / "monitoring.md"
    text = monitoring.read_text(encoding="utf-8")
    monitoring.write_text(TABLE.sub(lambda _: table() + "\n", text, count=1), encoding="utf-8")


if __name__ == "__main__":
    main()
