"""DVPO and its rivals on the demo: the same pairs, prompts, engine, learner and tokens, with another algorithm in the recipe.

DVPO is guided by the demo's value model; `ppo`, `grpo`, `rloo` and `p3o` by a reward model trained on the same pairs, and the
critic of `ppo` starts from the value model; `dpo` is trained on the pairs themselves. None of them is shown gold. All but `dpo`
learn from the same number of answers; those of the first two steps of `ppo` teach its critic alone (preset `max`). Arms that
have a result are not run again. Figures of all that were ever run lie in `figures/algorithms.json`, and `--there` makes the
table of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.algorithm_tables import COLOURS, Measured, cost_table, measured, plot, quality_table
from benchmarks.common import PLOTS, ROOT, RUNS, commit, figures, finished, keep_figures, train, write_section
from benchmarks.seeds import reward_model, value_model
from dvpo_ray.config import PipelineRecipe, load_recipe

GROUPS = {"grpo": (8, 4), "rloo": (8, 4), "p3o": (16, 2)}
SECTION = "algorithms"
GOLD = "dvpo_ray.demo.gold:vader_compound"


def policy_tree(guide: str) -> dict[str, Any]:
    """The demo's policy training, with the gold of training answers recorded and not rewarded."""
    tree = load_recipe(PipelineRecipe, "demo").policy_recipe(guide).model_dump(mode="json", exclude_none=True)
    tree["policy"]["rewards"] = {"gold": {"type": "function", "function": GOLD, "weight": 0.0}}
    return tree


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
        policy["rewards"]["preference"] = {"type": "model", "folder": str(reward_model(seed))}
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


def main() -> None:
    """Run the arms and write tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(COLOURS), default=list(COLOURS))
    parser.add_argument("--there", action="store_true", help="run nothing: the table of what has been run, here or elsewhere")
    given = parser.parse_args()
    # Seed by seed, so that what is compared was measured near in time: machines that are shared change their speed.
    for seed in [] if given.there else given.seeds:
        for kind in given.arms:
            run = arm(kind, seed)
            keep_figures(SECTION, {run.name: measured(run) | {"commit": commit()}})
    known = figures(SECTION)
    found: dict[str, dict[int, Measured]] = {
        kind: {seed: known[name] for seed in given.seeds if (name := place(kind, seed).name) in known} for kind in given.arms
    }
    found = {kind: by_seed for kind, by_seed in found.items() if by_seed}
    if not found:
        parser.exit(1, "no arm of these seeds has been run\n")
    image = PLOTS / "algorithms.png"
    plot(found, image)
    before = {seed: one["gold_before"] for by_seed in found.values() for seed, one in by_seed.items()}
    told = ", ".join(f"{gold:.3f} (seed {seed})" for seed, gold in sorted(before.items()))
    body = f"Held-out gold before training {told}; in the table by seed, from the first on. "
    body += "In the first two of its 20 steps `ppo` trains its critic alone.\n\n"
    made = {kind: " and ".join(sorted({one["commit"] for one in by_seed.values()})) for kind, by_seed in found.items()}
    body += f"Commits of the runs: {', '.join(f'`{kind}` {commits}' for kind, commits in made.items())}.\n\n"
    body += quality_table(found) + "\n" + cost_table(found)
    body += f"\n![KL against gold]({image.relative_to(ROOT / 'benchmarks')})\n"
    write_section(SECTION, "DVPO and its rivals", "python -m benchmarks.algorithms", body)
    print(body)


if __name__ == "__main__":
    main()
