"""What Prometheus can know of a run: the names, and where their numbers come from. Who sends them is ``actors.cluster.metrics``.

Those of a run's steps are what ``dvpo_ray.metrics`` knows with a gauge; those of actors are declared here. Ray puts ``ray_``
before every name. docs/monitoring.md lists them all; dashboard and alert rules use these names and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dvpo_ray.metrics import Gauge, metrics


@dataclass(frozen=True)
class Exported:
    """One name in Prometheus, of a run or of an actor.

    ``keys`` say which of a step's metrics it shows: by the value of its label, or under "" when it has none.
    """

    name: str
    meaning: str
    kind: Literal["gauge", "counter"] = "gauge"
    label: str = ""
    keys: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}"

    @property
    def owner(self) -> str:
        """The label that says who sent it."""
        return "run" if self.keys else "actor"

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of ours; Ray adds node, process and session."""
        return (self.owner, self.label) if self.label else (self.owner,)


def run_metrics() -> dict[str, Exported]:
    """The gauges of a run by name, from the declarations of metrics.

    Raises:
        ValueError: two metrics want one place.
    """
    found: dict[str, Exported] = {}
    for metric in metrics().values():
        if not metric.gauge:
            continue
        gauge = metric.gauge if isinstance(metric.gauge, Gauge) else Gauge(metric.gauge, metric.meaning, "")
        known = found.get(gauge.name, Exported(gauge.name, gauge.meaning, label=gauge.label, source=f"driver, {metric.recorded}"))
        if metric.series in known.keys or (known.meaning, known.label) != (gauge.meaning, gauge.label):
            raise ValueError(f"metric '{metric.key}': gauge '{gauge.name}' shows {dict(known.keys)} already: name another")
        found[gauge.name] = replace(known, keys={**known.keys, metric.series: metric.key})
    return found


ROLLOUT_ROWS = Exported("dvpo_rollout_rows_total", "Answers generated.", "counter", source="rollout actor, every answer")
ROLLOUT_TOKENS = Exported("dvpo_rollout_tokens_total", "Tokens generated.", "counter", source="rollout actor, every answer")
ENVIRONMENT_FAILURES = Exported(
    "dvpo_environment_failures_total",
    "Failures of environments, by kind: crashed and timeout, which cost an answer each, and close.",
    "counter",
    "kind",
    source="rollout actor, every failure",
)
ENGINE_VERSION = Exported("dvpo_engine_weights_version", "Version that an engine serves.", source="rollout actor, every update")
ENGINE_FENCED = Exported(
    "dvpo_engine_fenced",
    "1 while an engine must not serve: an update is under way or failed.",
    source="rollout actor, every update",
)
SCORED_ROWS = Exported("dvpo_scored_rows_total", "Answers scored.", "counter", source="scorer, every batch")
SCORED_TOKENS = Exported("dvpo_scored_tokens_total", "Answer tokens scored.", "counter", source="scorer, every batch")
CHECKSUM_OK = Exported(
    "dvpo_gvm_checksum_ok",
    "1 when the value model in memory is the one that was loaded, 0 when it changed (which ends the run).",
    source="scorer, when it has loaded, and when training begins and ends",
)
QUEUE_AGE = Exported(
    "dvpo_score_queue_age_seconds", "How long the oldest batch that no scorer has begun has waited.", source="driver, every batch"
)
SCORERS = Exported("dvpo_scorers", "Scorers that take batches.", source="driver, every batch")
RESTARTS = Exported(
    "dvpo_restarts_total",
    "Processes that were replaced.",
    "counter",
    "stage",
    source="driver or scorer, every restart",
)
BUSY = Exported("dvpo_busy_seconds_total", "Time with work under way.", "counter", "stage", source="every actor, all the time")
ACTOR_METRICS = (
    ROLLOUT_ROWS,
    ROLLOUT_TOKENS,
    ENVIRONMENT_FAILURES,
    ENGINE_VERSION,
    ENGINE_FENCED,
    SCORED_ROWS,
    SCORED_TOKENS,
    CHECKSUM_OK,
    QUEUE_AGE,
    SCORERS,
    RESTARTS,
    BUSY,
)


def catalogue() -> dict[str, Exported]:
    """All that Prometheus can know, by name."""
    return run_metrics() | {metric.name: metric for metric in ACTOR_METRICS}


def table() -> str:
    """All metrics as a table for the documents."""
    rows = [
        f"| `{metric.exported}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.meaning} | "
        f"{metric.source} |"
        for metric in catalogue().values()
    ]
    return "\n".join(["| name | kind | labels | meaning | sent by |", "|---|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
