"""Writes deploy/grafana/dashboards/dvpo.json from a table of panels. Run by `make dashboard`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards" / "dvpo.json"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, COLUMNS = 8, 7, 3
RUN = '{run=~"$run"}'
# Actors do not know the name of their run, but share the Ray session with its driver.
SESSION = '{SessionName=~"$session"}'


@dataclass(frozen=True)
class Panel:
    """One chart: (query, legend) pairs."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Learning",
        (
            Panel("Gold score of held-out answers", "none", ((f"ray_dvpo_gold{RUN}", "{{run}}"),)),
            Panel("Value", "none", ((f"ray_dvpo_value{RUN}", "{{run}} {{of}}"),)),
            Panel(
                "KL to the reference (nats a token)",
                "none",
                ((f"ray_dvpo_kl_per_token{RUN}", "{{run}}"), (f"ray_dvpo_eval_kl_per_token{RUN}", "{{run}} held out")),
            ),
            Panel("KL coefficient", "none", ((f"ray_dvpo_kl_coefficient{RUN}", "{{run}}"),)),
            Panel("Entropy (nats a token)", "none", ((f"ray_dvpo_entropy{RUN}", "{{run}}"),)),
            Panel("Advantage, standard deviation", "none", ((f"ray_dvpo_advantage_std{RUN}", "{{run}}"),)),
            Panel("Answer length (tokens)", "none", ((f"ray_dvpo_answer_tokens{RUN}", "{{run}}"),)),
            Panel(
                "Shares: clipped tokens, cut answers",
                "percentunit",
                ((f"ray_dvpo_clip_share{RUN}", "{{run}} clipped"), (f"ray_dvpo_answer_cut_share{RUN}", "{{run}} cut")),
            ),
            Panel(
                "Gradient norm, learning rate",
                "none",
                ((f"ray_dvpo_gradient_norm{RUN}", "{{run}} norm"), (f"ray_dvpo_learning_rate{RUN}", "{{run}} rate")),
            ),
        ),
    ),
    (
        "Pace",
        (
            Panel("Step", "s", ((f"ray_dvpo_step_seconds{RUN}", "{{run}}"),)),
            Panel("Stages", "s", ((f"ray_dvpo_stage_seconds{RUN}", "{{run}} {{stage}}"),)),
            Panel("Answer tokens a second", "none", ((f"ray_dvpo_answer_tokens_per_second{RUN}", "{{run}} trained"),)),
            Panel(
                "Idle share of each stage",
                "percentunit",
                ((f"1 - avg by (stage) (rate(ray_dvpo_busy_seconds_total{SESSION}[$__rate_interval]))", "{{stage}}"),),
            ),
            Panel(
                "Rows a second",
                "none",
                (
                    (f"sum(rate(ray_dvpo_rollout_rows_total{SESSION}[$__rate_interval]))", "generated"),
                    (f"sum(rate(ray_dvpo_scored_rows_total{SESSION}[$__rate_interval]))", "scored"),
                ),
            ),
            Panel(
                "Tokens a second",
                "none",
                (
                    (f"sum(rate(ray_dvpo_rollout_tokens_total{SESSION}[$__rate_interval]))", "generated"),
                    (f"sum(rate(ray_dvpo_scored_tokens_total{SESSION}[$__rate_interval]))", "scored"),
                ),
            ),
            Panel("Oldest batch that waits for a scorer", "s", ((f"ray_dvpo_score_queue_age_seconds{SESSION}", "age"),)),
            Panel("Scorers", "none", ((f"ray_dvpo_scorers{SESSION}", "scorers"),)),
            Panel(
                "Share of time that went into work that counts",
                "percentunit",
                ((f"ray_dvpo_effective_time_share{RUN}", "{{run}}"),),
            ),
        ),
    ),
    (
        "Health",
        (
            Panel("Ledger (rows)", "none", ((f"ray_dvpo_rows{RUN}", "{{run}} {{state}}"),)),
            Panel(
                "Weights: trained and served",
                "none",
                ((f"ray_dvpo_weights_version{RUN}", "{{run}}"), (f"ray_dvpo_engine_weights_version{SESSION}", "{{actor}}")),
            ),
            Panel(
                "Age of tokens (steps), rows dropped",
                "none",
                ((f"ray_dvpo_staleness_steps{RUN}", "{{run}} {{of}}"), (f"ray_dvpo_dropped_rows{RUN}", "{{run}} dropped")),
            ),
            Panel("Engine against learner (nats)", "none", ((f"ray_dvpo_log_prob_gap{RUN}", "{{run}}"),)),
            Panel(
                "Replaced processes",
                "none",
                ((f"sum by (stage) (increase(ray_dvpo_restarts_total{SESSION}[$__range])) or vector(0)", "{{stage}}"),),
            ),
            Panel(
                "Fenced engines, updates not finite",
                "none",
                ((f"ray_dvpo_engine_fenced{SESSION}", "{{actor}}"), (f"ray_dvpo_skipped_updates{RUN}", "{{run}} withheld")),
            ),
            Panel("Value model is as it was loaded", "bool_yes_no", ((f"ray_dvpo_gvm_checksum_ok{SESSION}", "{{actor}}"),)),
            Panel("Since the last step", "s", ((f"time() - ray_dvpo_last_step_timestamp_seconds{RUN}", "{{run}}"),)),
            Panel(
                "Failures of environments",
                "none",
                ((f"sum by (kind) (increase(ray_dvpo_environment_failures_total{SESSION}[$__range])) or vector(0)", "{{kind}}"),),
            ),
            Panel("Loss of value pretraining", "none", ((f"ray_dvpo_value_loss{RUN}", "{{run}}"),)),
        ),
    ),
)


def dashboard() -> str:
    """The dashboard as JSON."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, charts in ROWS:
        panels.append(_row(len(panels) + 1, title, top))
        top += 1
        for i, chart in enumerate(charts):
            place = {"x": i % COLUMNS * WIDTH, "y": top + i // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append(_chart(len(panels) + 1, chart, place))
        top += -(-len(charts) // COLUMNS) * HEIGHT
    content = {
        "uid": "dvpo",
        "title": "DVPO",
        "tags": ["dvpo", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "title": "Ray", "tags": ["ray"], "asDropdown": True, "keepTime": True}],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0},
                _variable("run", "Run", "label_values(ray_dvpo_step_seconds, run)"),
                _variable("session", "Ray session", 'label_values(ray_dvpo_step_seconds{run=~"$run"}, SessionName)'),
            ]
        },
        "annotations": {"list": []},
        "panels": panels,
    }
    return json.dumps(content, indent=1) + "\n"


def _row(number: int, title: str, top: int) -> dict[str, Any]:
    place = {"x": 0, "y": top, "w": WIDTH * COLUMNS, "h": 1}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _chart(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": PROMETHEUS, "expr": query, "legendFormat": legend}
        for i, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": PROMETHEUS,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": targets,
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": PROMETHEUS,
        "query": {"query": query, "refId": name},
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
        "hide": 0,
    }


if __name__ == "__main__":
    FILE.write_text(dashboard(), encoding="utf-8")
    print(FILE)
