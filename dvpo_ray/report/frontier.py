"""Curves across runs: gold against KL, and the best of n."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from dvpo_ray.errors import DataError
from dvpo_ray.io.disk import write_text
from dvpo_ray.io.json_files import check_numbers, read_object
from dvpo_ray.report.charts import COLOURS, svg
from dvpo_ray.report.records import read_metrics

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NUMBERS = ("gold", "gold_ci95_low", "gold_ci95_high", "kl_per_answer")


def write_frontier(runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Draw all evaluations of some runs into one SVG; returns the points, those on the frontier marked.

    Raises:
        DataError: a folder holds no evaluation with gold, or a record is not as the run wrote it.
    """
    points = [point for run, name in zip(runs, _names(runs), strict=True) for point in evaluations(run, name)]
    best = frontier(points)
    rows = [point | {"on_frontier": i in best} for i, point in enumerate(points)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, _draw_frontier(rows))
    return {"points": rows, "chart": str(out.resolve())}


def evaluations(run: Path, name: str) -> list[dict[str, Any]]:
    """Gold with its interval, KL in nats an answer, and the share of answers cut at the limit (None where it was not recorded),
    at every step that a run evaluated, or of an evaluation by itself.

    Raises:
        DataError: there is none with gold.
    """
    folder = run / "policy" if (run / "policy" / "metrics.jsonl").is_file() else run
    points = []
    for number, line in enumerate(read_metrics(folder / "metrics.jsonl"), 1):
        if "eval/gold" in line:
            where = f"{folder / 'metrics.jsonl'}, row {number}"
            check_numbers(line, ("step", *(f"eval/{key}" for key in NUMBERS)), where)
            numbers = {key: line[f"eval/{key}"] for key in NUMBERS}
            points.append({"run": name, "step": line["step"]} | numbers | {"cut_share": line.get("eval/cut_share")})
    result = folder / "result.json"
    if not points and result.is_file():
        facts = read_object(result)
        if "gold" in facts:
            check_numbers(facts, NUMBERS, str(result))
            points.append({"run": name, "step": 0} | {key: facts[key] for key in NUMBERS} | {"cut_share": facts.get("cut_share")})
    if not points:
        raise DataError(
            f"'{run}' holds no evaluation with gold: give the folder of a policy run, a demo or `dvpo eval policy` whose recipe "
            "has policy.evaluation.gold"
        )
    return points


def frontier(points: Sequence[dict[str, Any]]) -> list[int]:
    """Points that no other beats in both gold and KL, by rising KL: indices."""
    found: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i]["kl_per_answer"], -points[i]["gold"])):
        if not found or points[i]["gold"] > points[found[-1]]["gold"]:
            found.append(i)
    return found


def draw_best_of(curve: Sequence[dict[str, Any]]) -> str:
    """The rows of a best-of-n curve as SVG."""
    names = [name for name in curve[0] if f"{name}_ci95" in curve[0]]
    counts = [row["n"] for row in curve]

    def draw(axes: Any) -> None:
        for name, look in zip(names, _looks(), strict=False):
            intervals = [row[f"{name}_ci95"] for row in curve]
            _plot(axes, counts, [row[name] for row in curve], intervals, name.replace("_", " "), look)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.set_xlabel("best of n answers")
        axes.legend(frameon=False)

    return svg(draw)


def _draw_frontier(rows: Sequence[dict[str, Any]]) -> str:
    def draw(axes: Any) -> None:
        for name, look in zip(dict.fromkeys(row["run"] for row in rows), _looks(), strict=False):
            own = [row for row in rows if row["run"] == name]
            intervals = [(row["gold_ci95_low"], row["gold_ci95_high"]) for row in own]
            _plot(axes, [row["kl_per_answer"] for row in own], [row["gold"] for row in own], intervals, name, look)
        best = sorted((row["kl_per_answer"], row["gold"]) for row in rows if row["on_frontier"])
        axes.step(*zip(*best, strict=True), where="post", color="#252525", linestyle=":", label="frontier")
        axes.set_xlabel("KL to the reference (nats per answer)")
        axes.set_ylabel("held-out gold (95% interval)")
        axes.legend(frameon=False)

    return svg(draw, 6.4, 4.0)


def _looks() -> Iterator[tuple[str, str]]:
    """Colours and markers; 35 pairs before one comes again."""
    return zip(cycle(COLOURS), cycle(MARKERS), strict=False)


def _plot(
    axes: Any, x: Sequence[float], means: Sequence[float], intervals: Sequence[Sequence[float]], label: str, look: tuple[str, str]
) -> None:
    """A line with intervals; a percentile interval need not hold the mean itself."""
    pairs = list(zip(means, intervals, strict=True))
    bars = [[max(0.0, mean - low) for mean, (low, _) in pairs], [max(0.0, high - mean) for mean, (_, high) in pairs]]
    axes.errorbar(x, means, yerr=bars, color=look[0], marker=look[1], capsize=3, linewidth=0.8, label=label)


def _names(runs: Sequence[Path]) -> list[str]:
    """Each folder's name, or its path where names are the same."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]
