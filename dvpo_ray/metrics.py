"""What the numbers of a run mean and where they are shown. Each is declared once; nothing else lists them.

The console's line of a step, the report's charts, Prometheus and docs/metrics.md read the declarations. A package declares what
it makes in a module ``metrics`` of its own (``BUILT_IN``); a plug-in calls ``declare``, or gives its settings a ``METRICS``:

    class BrevitySettings(Section):
        METRICS: ClassVar = (Metric("brevity/words", "Mean words of an answer.", unit="words", console="words", chart="Words"),)

Numbers that nobody declared are recorded and tracked all the same; they are not shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module

EVERY_STEP = "every step"
EVERY_EVALUATION = "every evaluation"
BUILT_IN = ("dvpo_ray.evaluation.metrics", "dvpo_ray.learning.metrics", "dvpo_ray.loop.metrics", "dvpo_ray.runs.metrics")


@dataclass(frozen=True)
class Gauge:
    """A name in Prometheus that several metrics share, each under a value of its own of the label."""

    name: str
    meaning: str
    label: str


@dataclass(frozen=True)
class Metric:
    """A number that steps or evaluations record in ``metrics.jsonl``.

    Attributes:
        key: as recorded, ``kl/per_token``; a last part ``*`` stands for any name, as in ``reward/*``.
        meaning: one sentence.
        unit: what it is counted in; empty for shares and pure numbers.
        recorded: by what.
        console: its name in the console's line of a step or an evaluation; empty: it has no place there.
        chart: title of its chart in the report; those of one title share a chart. Empty: no chart.
        line: name of its line in a chart of several; by default the last part of the key.
        gauge: its name in Prometheus, or one that it shares; empty: not there.
        series: the value of a shared gauge's label.
    """

    key: str
    meaning: str
    unit: str = ""
    recorded: str = EVERY_STEP
    console: str = ""
    chart: str = ""
    line: str = ""
    gauge: str | Gauge = ""
    series: str = ""

    def __post_init__(self) -> None:
        if self.key.count("/") != 1 or "*" in self.key.removesuffix("/*") or not self.meaning.endswith("."):
            raise ValueError(f"metric '{self.key}': its key is 'group/name' or 'group/*', and its meaning a sentence")
        if isinstance(self.gauge, Gauge) != bool(self.series):
            raise ValueError(f"metric '{self.key}': a gauge that is shared needs a series, and only that")
        if self.gauge and self.key.endswith("*"):
            raise ValueError(f"metric '{self.key}': a gauge shows one number, not all of a group")


@dataclass(frozen=True)
class Figure:
    """A figure of ``result.json``.

    Attributes:
        key: as in the file.
        label: what the console's closing lines call it.
        digits: after the point, where it is a number.
        card: whether the head of the report shows it, too.
    """

    key: str
    label: str
    digits: int = 3
    card: bool = False


_METRICS: dict[str, Metric] = {}
_FIGURES: dict[str, Figure] = {}


def declare(*declared: Metric | Figure) -> None:
    """Make metrics and figures known to all that show them, in this process; the same again changes nothing.

    Raises:
        ValueError: a key has another declaration already.
    """
    for one in declared:
        known = metrics().get(one.key) if isinstance(one, Metric) else figures().get(one.key)
        if known not in (None, one):
            raise ValueError(f"'{one.key}' is declared already, as {known}: name yours otherwise")
        if isinstance(one, Metric):
            _METRICS[one.key] = one
        else:
            _FIGURES[one.key] = one


def metrics() -> dict[str, Metric]:
    """All declared metrics by key, those of the project first."""
    return _built_in()[0] | _METRICS


def figures() -> dict[str, Figure]:
    """All declared figures by key, those of the project first."""
    return _built_in()[1] | _FIGURES


def plug_ins() -> list[Metric | Figure]:
    """What was declared in this process besides the project's own."""
    own_metrics, own_figures = _built_in()
    added = [metric for key, metric in _METRICS.items() if key not in own_metrics]
    return [*added, *(figure for key, figure in _FIGURES.items() if key not in own_figures)]


def metric_of(key: str, known: dict[str, Metric] | None = None) -> Metric | None:
    """The declaration of a recorded key; ``known`` None looks among all that are declared in this process."""
    known = metrics() if known is None else known
    return known.get(key) or known.get(f"{key.partition('/')[0]}/*")


@cache
def _built_in() -> tuple[dict[str, Metric], dict[str, Figure]]:
    modules = [import_module(name) for name in BUILT_IN]
    own_metrics = {one.key: one for module in modules for one in module.METRICS}
    return own_metrics, {one.key: one for module in modules for one in module.FIGURES}
