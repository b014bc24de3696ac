"""Tables and plot of DVPO and its rivals, from what was measured in each run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finished, table
from dvpo_ray.run_folder import recorded_steps

COLOURS = {"dvpo": "#0b6e4f", "ppo": "#b42318", "grpo": "#1f6feb", "rloo": "#7a3fb0", "p3o": "#c77700", "dpo": "#555555"}
WANTED_GOLD = 0.6
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
    return {name: result[name] for name in OF_RESULT} | {"curve": curve, "tokens_to_gold": tokens_to_gold(steps)}


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run's steps, those with gold."""
    return [step for step in recorded_steps(run) if "reward/gold" in step]


def tokens_to_gold(steps: list[dict[str, Any]]) -> float | None:
    """Tokens generated until the smoothed gold of training answers had reached ``WANTED_GOLD``, or None."""
    if len(steps) < SMOOTHED:
        return None
    enough = np.flatnonzero(smoothed([step["reward/gold"] for step in steps]) >= WANTED_GOLD)
    if not enough.size:
        return None
    return float(np.cumsum([step["answer/total_tokens"] for step in steps])[enough[0] + SMOOTHED - 1])


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
        tokens = ["never" if one["tokens_to_gold"] is None else f"{one['tokens_to_gold']:.0f}" for one in runs]
        rows.append(
            [
                f"`{kind}`",
                len(runs),
                " / ".join(golds),
                statistics.mean(one["gold_after"] for one in runs),
                min(one["gold_after"] for one in runs),
                statistics.mean(one["win_rate"] for one in runs),
                statistics.mean(one["kl_per_token"] for one in runs),
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
        f"tokens to gold {WANTED_GOLD}",
    ]
    return table(header, rows)


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
        both = [(one["tokens_to_gold"], other["tokens_to_gold"]) for one, other in pairs]
        tokens = " / ".join("one never reached it" if None in two else f"{two[0] / two[1]:.2f}" for two in both)
        body += f"\nDVPO : PPO, of the same seeds: time a step {time:.2f}, learner memory {learner:.2f}, whole run {whole:.2f}; "
        body += f"tokens to gold {WANTED_GOLD} by seed {tokens}.\n"
    return body


def _ratio(pairs: Iterable[tuple[Measured, Measured]], measure: Callable[[Measured], float]) -> float:
    """Mean over the first runs by the mean over the second."""
    first, second = zip(*pairs, strict=True)
    return statistics.mean(map(measure, first)) / statistics.mean(map(measure, second))
