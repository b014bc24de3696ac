"""Tables and plot of DVPO and its rivals, from what was measured in each run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finished, mean_of, table
from dvpo_ray.io.json_files import read_records
from dvpo_ray.runs.folder import METRICS, recorded_steps

COLOURS = {"dvpo": "#0b6e4f", "ppo": "#b42318", "grpo": "#1f6feb", "rloo": "#7a3fb0", "p3o": "#c77700", "dpo": "#555555"}
WANTED_GOLD = 0.6
# KL at which algorithms are compared, in nats a token: all but `dpo`, which generates no answers, pass through it on every seed.
EQUAL_KL = (0.05, 0.10)
# Steps over which the gold of training answers is averaged: 32 answers of one step are few.
SMOOTHED = 3
OF_RESULT = (
    "gold_before",
    "gold_after",
    "gold_after_ci95",
    "win_rate",
    "kl_per_token",
    "seconds_per_step",
    "peak_memory_gb",
    "peak_memory_by_process_gb",
)

# What runs of earlier versions did not say.
OF_LATER_RESULT = ("cut_share_after", "win_rate_ci95")

Measured = dict[str, Any]


def result_of(run: Path) -> dict[str, Any]:
    """The result of a finished run."""
    found = finished(run)
    assert found is not None, f"{run} has no result"
    return found


def smoothed(numbers: list[float]) -> np.ndarray:
    """Moving mean over ``SMOOTHED`` steps."""
    return np.convolve(numbers, np.ones(SMOOTHED) / SMOOTHED, mode="valid")


def measured(run: Path) -> Measured:
    """What tables and plot need of a finished run; ``curve`` are KL and gold of training answers, smoothed."""
    steps = steps_of(run)
    curve: list[list[float]] = []
    if len(steps) >= SMOOTHED:
        kl, gold = (smoothed([step[name] for step in steps]).round(4) for name in ("kl/per_token", "reward/gold"))
        curve = [[float(k), float(g)] for k, g in zip(kl, gold, strict=True)]
    result = result_of(run)
    facts = {name: result[name] for name in OF_RESULT} | {name: result[name] for name in OF_LATER_RESULT if name in result}
    return facts | {"curve": curve, "tokens_to_held_out_gold": tokens_to_gold(steps, golds_of(run))}


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run's steps, those with gold."""
    return [step for step in recorded_steps(run) if "reward/gold" in step]


def golds_of(run: Path) -> dict[int, float]:
    """Gold of a run's held-out evaluations, by trained steps."""
    return {line["step"]: line["eval/gold"] for line in read_records(run / METRICS) if "eval/gold" in line}


def tokens_to_gold(steps: list[dict[str, Any]], golds: dict[int, float]) -> float | None:
    """Tokens generated until held-out gold reached ``WANTED_GOLD``, or None: on a line between the evaluations before and after.

    Args:
        steps: metrics of all steps, from the first on.
        golds: held-out gold by trained steps.
    """
    tokens = np.concatenate([[0.0], np.cumsum([step["answer/total_tokens"] for step in steps])])
    return first_crossing([(gold, float(tokens[step])) for step, gold in sorted(golds.items())], WANTED_GOLD)


def first_crossing(points: Sequence[Sequence[float]], wanted: float) -> float | None:
    """The second coordinate where the first one reaches ``wanted`` for the first time, on straight lines between points in their
    order; None where it never does, or begins beyond it."""
    for (x, y), (next_x, next_y) in pairwise(points):
        if x < wanted <= next_x:
            return float(y + (next_y - y) * (wanted - x) / (next_x - x))
    return None


def learner_gb(one: Measured) -> float:
    """Peak of the processes that train, in GB."""
    return sum(size for name, size in one["peak_memory_by_process_gb"].items() if name.endswith("Rank"))


def plot(found: dict[str, dict[int, Measured]], path: Path) -> None:
    """KL against gold: training answers over the steps (lines), held-out prompts at the end (dots, one a seed)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for kind, by_seed in found.items():
        for one in by_seed.values():
            if one["curve"]:
                axes.plot(*zip(*one["curve"], strict=True), color=COLOURS[kind], alpha=0.5, linewidth=1)
        kl, gold = ([one[name] for one in by_seed.values()] for name in ("kl_per_token", "gold_after"))
        axes.scatter(kl, gold, color=COLOURS[kind], zorder=3, label=kind)
    axes.set_xlabel("KL to the reference, nats a token")
    axes.set_ylabel("gold (dots: held-out prompts after training)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def quality_table(found: dict[str, dict[int, Measured]]) -> str:
    """Held-out gold by seed, KL and tokens to the wanted gold."""
    rows = []
    for kind, by_seed in found.items():
        runs = list(by_seed.values())
        golds = [f"{one['gold_after']:.3f} ({one['gold_after_ci95'][0]:.3f} to {one['gold_after_ci95'][1]:.3f})" for one in runs]
        tokens = [_tokens(one) for one in runs]
        rows.append(
            [
                f"`{kind}`",
                len(runs),
                " / ".join(golds),
                statistics.mean(one["gold_after"] for one in runs),
                min(one["gold_after"] for one in runs),
                statistics.mean(one["win_rate"] for one in runs),
                statistics.mean(one["kl_per_token"] for one in runs),
                mean_of(runs, "cut_share_after"),
                " / ".join(tokens) if kind != "dpo" else "none generated",
            ]
        )
    header = [
        "",
        "seeds",
        "held-out gold by seed (95%)",
        "mean",
        "worst",
        "win rate",
        "KL/token",
        "answers cut",
        f"tokens to gold {WANTED_GOLD}",
    ]
    return table(header, rows)


def _tokens(one: Measured) -> str:
    if "tokens_to_held_out_gold" not in one:
        return "-"
    tokens = one["tokens_to_held_out_gold"]
    return "never" if tokens is None else f"{tokens:.0f}"


def equal_kl_table(found: dict[str, dict[int, Measured]]) -> str:
    """Gold of training answers where a run first comes to a KL of ``EQUAL_KL``, mean of seeds and each, best first.

    The curve is that of measured steps, smoothed; between two of them it is a straight line.
    """
    rows: list[list[Any]] = []
    for kind, by_seed in found.items():
        cells: list[Any] = []
        for kl in EQUAL_KL:
            golds = [first_crossing(one["curve"], kl) for one in by_seed.values()]
            reached = [gold for gold in golds if gold is not None]
            cells += [statistics.mean(reached), " / ".join(f"{gold:.3f}" for gold in reached)] if reached == golds else ["-", "-"]
        rows.append([f"`{kind}`", *cells])
    rows.sort(key=lambda row: (isinstance(row[-2], str), -row[-2] if not isinstance(row[-2], str) else 0))
    return table(["", *(text for kl in EQUAL_KL for text in (f"gold at {kl:.2f} nats a token", "by seed"))], rows)


def cost_table(found: dict[str, dict[int, Measured]]) -> str:
    """Time and memory, and what is left of PPO's."""
    rows = []
    for kind, by_seed in found.items():
        runs = list(by_seed.values())
        held = ", ".join(f"{name} {size:.2f}" for name, size in runs[0]["peak_memory_by_process_gb"].items() if size >= 0.3)
        rows.append(
            [
                f"`{kind}`",
                statistics.mean(one["seconds_per_step"] for one in runs),
                statistics.mean(learner_gb(one) for one in runs),
                statistics.mean(one["peak_memory_gb"] for one in runs),
                held,
            ]
        )
    body = table(["", "s/step (median)", "learner peak, GB", "whole run, GB", "processes, GB each at its peak"], rows)
    dvpo, ppo = found.get("dvpo", {}), found.get("ppo", {})
    pairs = [(dvpo[seed], ppo[seed]) for seed in dvpo if seed in ppo]
    if pairs:
        time = _ratio(pairs, lambda one: one["seconds_per_step"])
        learner, whole = _ratio(pairs, learner_gb), _ratio(pairs, lambda one: one["peak_memory_gb"])
        body += f"\nDVPO : PPO, of the same seeds: time a step {time:.2f}, learner memory {learner:.2f}, whole run {whole:.2f}"
        if all("tokens_to_held_out_gold" in one for two in pairs for one in two):
            both = [(one["tokens_to_held_out_gold"], other["tokens_to_held_out_gold"]) for one, other in pairs]
            tokens = " / ".join("one never reached it" if None in two else f"{two[0] / two[1]:.2f}" for two in both)
            body += f"; tokens to gold {WANTED_GOLD} by seed {tokens}"
        body += ".\n"
    return body


def _ratio(pairs: Iterable[tuple[Measured, Measured]], measure: Callable[[Measured], float]) -> float:
    """Mean over the first runs by the mean over the second."""
    first, second = zip(*pairs, strict=True)
    return statistics.mean(map(measure, first)) / statistics.mean(map(measure, second))
