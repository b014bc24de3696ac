"""The report's curves, drawn by matplotlib as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from dvpo_ray.report.records import STAGES, RunRecords

Drawing = Callable[[Any], None]
COLOURS = ("#2171b5", "#d95f0e", "#238b45", "#756bb1", "#636363")


def all_charts(records: RunRecords) -> list[dict[str, str]]:
    """Every chart the run has data for: title and SVG."""
    charts: list[tuple[str, Drawing | None]] = [
        ("Held-out gold (mean, 95% interval)", _gold(records)),
        (
            "Frozen value of the answers in training",
            _lines(records.policy_steps, {"value/last": "last token", "value/mean": "mean"}),
        ),
        (
            "KL to the reference (nats per token)",
            _lines(records.policy_steps, {"kl/per_token": "engine log-probs", "kl/learner_per_token": "learner log-probs"}),
        ),
        ("Seconds of each stage", _stacked_seconds(records.policy_steps)),
        ("Answer length (tokens)", _lines(records.policy_steps, {"answer/tokens": "tokens"})),
        ("Entropy (nats per token)", _lines(records.policy_steps, {"policy/entropy": "entropy"})),
        ("Log-prob gap, engine to learner (mean absolute)", _lines(records.policy_steps, {"gap/abs_log_prob": "gap"})),
        ("Gradient norm before clipping", _lines(records.policy_steps, {"optimizer/grad_norm": "policy"})),
        ("Value pretraining loss", _lines(records.value_steps, {"loss/value": "loss"})),
        ("DPO loss", _lines(records.dpo_steps, {"loss/dpo": "loss"})),
        (
            "DPO: beta times margin, and share ranked right",
            _lines(records.dpo_steps, {"dpo/margin": "margin", "dpo/accuracy": "right"}),
        ),
    ]
    return [{"title": title, "svg": svg(draw)} for title, draw in charts if draw is not None]


def _lines(rows: Sequence[dict[str, Any]], keys: dict[str, str]) -> Drawing | None:
    if not rows:
        return None

    def draw(axes: Any) -> None:
        for colour, (key, label) in zip(COLOURS, keys.items(), strict=False):
            axes.plot([row["step"] for row in rows], [row[key] for row in rows], color=colour, label=label)
        axes.set_xlabel("step")
        if len(keys) > 1:
            axes.legend(frameon=False)

    return draw


def _gold(records: RunRecords) -> Drawing | None:
    rows = [row for row in records.evaluations if "eval/gold" in row]
    if not rows:
        return None

    def draw(axes: Any) -> None:
        steps, gold = [row["step"] for row in rows], [row["eval/gold"] for row in rows]
        below = [row["eval/gold"] - row["eval/gold_ci95_low"] for row in rows]
        above = [row["eval/gold_ci95_high"] - row["eval/gold"] for row in rows]
        axes.errorbar(steps, gold, yerr=[below, above], color=COLOURS[0], marker="o", capsize=4)
        axes.set_xlabel("step")

    return draw


def _stacked_seconds(rows: Sequence[dict[str, Any]]) -> Drawing | None:
    if not rows:
        return None

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
