"""DVPO and its rivals on the demo: the same pairs, prompts, engine, learner and tokens, with another algorithm in the recipe.

DVPO is guided by the demo's value model; `ppo`, `grpo`, `rloo` and `p3o` by a reward model trained on the same pairs, and the
critic of `ppo` starts from the value model; `dpo` is trained on the pairs themselves. None of them is shown gold. Arms that
have a result are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import PLOTS, ROOT, RUNS, finished, table, train, write_section
from benchmarks.seeds import value_model
from dvpo_ray.config import PipelineRecipe, load_recipe

COLOURS = {"dvpo": "#0b6e4f", "ppo": "#b42318", "grpo": "#1f6feb", "rloo": "#7a3fb0", "p3o": "#c77700", "dpo": "#555555"}
GROUPS = {"grpo": (8, 4), "rloo": (8, 4), "p3o": (16, 2)}
GOLD = "dvpo_ray.demo.gold:vader_compound"
WANTED_GOLD = 0.6
# Steps over which the gold of training answers is averaged: 32 answers of one step are few.
SMOOTHED = 3


def policy_tree(guide: str) -> dict[str, Any]:
    """The demo's policy training, with the gold of training answers recorded and not rewarded."""
    tree = load_recipe(PipelineRecipe, "demo").policy_recipe(guide).model_dump(mode="json", exclude_none=True)
    tree["policy"]["rewards"] = {"gold": {"type": "function", "function": GOLD, "weight": 0.0}}
    return tree


def reward_model(seed: int) -> str:
    """A reward model of the demo's pairs, trained as long as its value model."""
    folder = RUNS / f"reward-seed-{seed}"
    if finished(folder) is None:
        demo_recipe = load_recipe(PipelineRecipe, "demo")
        tree = demo_recipe.value_recipe().model_dump(mode="json", exclude_none=True)
        tree["value"]["target"] = {"type": "reward"}
        train("reward", tree, folder, seed)
    result = finished(folder)
    assert result is not None
    return str(result["reward_model"])


def place(kind: str, seed: int) -> Path:
    """The folder of a run."""
    return RUNS / f"algorithm-{kind}-seed-{seed}"


def arm(kind: str, seed: int) -> Path:
    """The folder of a finished run."""
    folder = place(kind, seed)
    if finished(folder) is not None:
        return folder
    guide = str(value_model(seed))
    tree = policy_tree(guide)
    policy = tree["policy"]
    if kind == "dpo":
        return dpo(folder, tree, seed)
    if kind != "dvpo":
        del policy["value_model"]
        policy["rewards"]["preference"] = {"type": "model", "folder": reward_model(seed)}
        policy["advantage"] = {"type": kind, "score": "none"}
    if kind == "ppo":
        critic = {"initial": guide, "learning_rate": policy["learner"]["learning_rate"]}
        policy["advantage"] = {"type": "ppo", "preset": "max", "critic": critic}
    if kind in GROUPS:
        policy["rollout"] |= dict(zip(("prompts_per_step", "answers_per_prompt"), GROUPS[kind], strict=True))
    train("policy", tree, folder, seed)
    return folder


def dpo(folder: Path, tree: dict[str, Any], seed: int) -> Path:
    """DPO on all pairs once, with the policy's learner and evaluation."""
    recipe = load_recipe(PipelineRecipe, "demo")
    value = recipe.value_recipe().model_dump(mode="json", exclude_none=True)["value"]
    policy = tree["policy"]
    section = {
        "data": value["data"],
        "pairs_per_step": 16,
        "learner": policy["learner"] | {"token_budget": value["learner"]["token_budget"]},
        "rollout": {
            key: value for key, value in policy["rollout"].items() if key not in ("prompts_per_step", "answers_per_prompt")
        },
        "evaluation": policy["evaluation"],
        "commit": {"every": 0},
    }
    train("dpo", {"model": tree["model"], "dpo": section}, folder, seed)
    return folder


def result_of(run: Path) -> dict[str, Any]:
    """The result of a finished run."""
    found = finished(run)
    assert found is not None, f"{run} has no result"
    return found


def steps_of(folder: Path) -> list[dict[str, float]]:
    """Metrics of every step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "seconds/step" in line]


def smoothed(numbers: list[float]) -> np.ndarray:
    """Moving mean over ``SMOOTHED`` steps."""
    return np.convolve(numbers, np.ones(SMOOTHED) / SMOOTHED, mode="valid")


def tokens_to_gold(folder: Path) -> float | None:
    """Generated tokens until the moving mean of training answers' gold is ``WANTED_GOLD``; None when it never is."""
    steps = [step for step in steps_of(folder) if "reward/gold" in step]
    if not steps:
        return None
    gold, tokens = smoothed([step["reward/gold"] for step in steps]), np.cumsum([step["answer/total_tokens"] for step in steps])
    reached = np.flatnonzero(gold >= WANTED_GOLD)
    return None if not reached.size else float(tokens[reached[0] + SMOOTHED - 1])


def learner_gb(result: dict[str, Any]) -> float:
    """Peak of the processes that train, in GB."""
    peaks = result["peak_memory_by_process_gb"]
    return sum(size for name, size in peaks.items() if name.endswith("Rank"))


def plot(folders: dict[str, list[Path]], path: Path) -> None:
    """KL against gold: training answers over the steps (lines), held-out prompts at the end (dots, one a seed)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for kind, runs in folders.items():
        for run in runs:
            steps = [step for step in steps_of(run) if "reward/gold" in step]
            if len(steps) >= SMOOTHED:
                kl = smoothed([step["kl/per_token"] for step in steps])
                axes.plot(kl, smoothed([step["reward/gold"] for step in steps]), color=COLOURS[kind], alpha=0.5, linewidth=1)
            result = result_of(run)
            label = kind if run == runs[0] else None
            axes.scatter(result["kl_per_token"], result["gold_after"], color=COLOURS[kind], zorder=3, label=label)
    axes.set_xlabel("KL to the reference, nats a token")
    axes.set_ylabel("gold (dots: held-out prompts after training)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def quality_table(folders: dict[str, list[Path]]) -> str:
    """Held-out gold by seed, KL and tokens to the wanted gold."""
    rows = []
    for kind, runs in folders.items():
        results = [found for run in runs if (found := finished(run)) is not None]
        golds = [
            f"{one['gold_after']:.3f} ({one['gold_after_ci95'][0]:.3f} to {one['gold_after_ci95'][1]:.3f})" for one in results
        ]
        tokens = [tokens_to_gold(run) for run in runs]
        rows.append(
            [
                f"`{kind}`",
                len(runs),
                " / ".join(golds),
                statistics.mean(one["gold_after"] for one in results),
                min(one["gold_after"] for one in results),
                statistics.mean(one["win_rate"] for one in results),
                statistics.mean(one["kl_per_token"] for one in results),
                " / ".join("never" if n is None else f"{n:.0f}" for n in tokens) if kind != "dpo" else "none generated",
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


def cost_table(folders: dict[str, list[Path]]) -> str:
    """Time and memory, and what is left of PPO's."""
    results = {kind: [one for run in runs if (one := finished(run)) is not None] for kind, runs in folders.items()}
    rows = []
    for kind, found in results.items():
        peaks = found[0]["peak_memory_by_process_gb"]
        held = ", ".join(f"{name} {size:.2f}" for name, size in peaks.items() if size >= 0.3)
        rows.append(
            [
                f"`{kind}`",
                statistics.mean(one["seconds_per_step"] for one in found),
                statistics.mean(learner_gb(one) for one in found),
                statistics.mean(one["peak_memory_gb"] for one in found),
                held,
            ]
        )
    body = table(["", "s/step (median)", "learner peak, GB", "whole run, GB", "processes, GB each at its peak"], rows)
    ppo = {seed_of(run): run for run in folders.get("ppo", [])}
    pairs = [(run, ppo[seed_of(run)]) for run in folders.get("dvpo", []) if seed_of(run) in ppo]
    if pairs:
        time, learner, whole = (_ratio(pairs, measure) for measure in (_step_seconds, learner_gb, _whole))
        reached = [tokens_to_gold(run) for run in pairs[0]]
        tokens = f"{reached[0] / reached[1]:.2f}" if reached[0] and reached[1] else "one never reached it"
        body += f"\nDVPO : PPO, of the same seeds: time a step {time:.2f}, learner memory {learner:.2f}, whole run {whole:.2f}, "
        body += f"tokens to gold {WANTED_GOLD} (first seed) {tokens}.\n"
    return body


def seed_of(run: Path) -> int:
    """The seed in the name of a run's folder."""
    return int(run.name.rpartition("-")[2])


def _step_seconds(result: dict[str, Any]) -> float:
    return float(result["seconds_per_step"])


def _whole(result: dict[str, Any]) -> float:
    return float(result["peak_memory_gb"])


def _ratio(pairs: list[tuple[Path, Path]], measure: Callable[[dict[str, Any]], float]) -> float:
    """Mean over the first runs by the mean over the second."""

    def mean(runs: Iterable[Path]) -> float:
        return statistics.mean(measure(result_of(run)) for run in runs)

    return mean(first for first, _ in pairs) / mean(second for _, second in pairs)


def main() -> None:
    """Run the arms and write tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(COLOURS), default=list(COLOURS))
    parser.add_argument("--there", action="store_true", help="run nothing: the table of what has been run")
    given = parser.parse_args()
    if given.there:
        folders = {kind: [run for run in (place(kind, seed) for seed in given.seeds) if finished(run)] for kind in given.arms}
        folders = {kind: runs for kind, runs in folders.items() if runs}
        if not folders:
            parser.exit(1, f"no arm of these seeds has been run into {RUNS}\n")
    else:
        folders = {kind: [arm(kind, seed) for seed in given.seeds] for kind in given.arms}
    image = PLOTS / "algorithms.png"
    plot(folders, image)
    before = {
        seed_of(run): json.loads((run / "result.json").read_text())["gold_before"] for runs in folders.values() for run in runs
    }
    told = ", ".join(f"{gold:.3f} (seed {seed})" for seed, gold in sorted(before.items()))
    body = f"Held-out gold before training {told}; in the table by seed, from the first on.\n\n"
    body += quality_table(folders) + "\n" + cost_table(folders)
    body += f"\n![KL against gold]({image.relative_to(ROOT / 'benchmarks')})\n"
    write_section("algorithms", "DVPO and its rivals", "python -m benchmarks.algorithms", body)
    print(body)


if __name__ == "__main__":
    main()
