"""DVPO and its rivals on the demo: the same pairs, prompts, engine, learner and tokens, with another algorithm in the recipe.

DVPO is guided by the demo's value model; `ppo`, `grpo`, `rloo` and `p3o` by a reward model trained on the same pairs, and the
critic of `ppo` starts from the value model; `dpo` is trained on the pairs themselves. None of them is shown gold. All but `dpo`
learn from the same number of answers; those of the first two steps of `ppo` teach its critic alone (preset `max`). Arms that
have a result are not run again. `--until-gold` lets those that have not reached the gold of the table go on for some steps, to
count the tokens it takes them; nothing else is measured there. Figures of all that were ever run lie in
`figures/algorithms.json`, and `--there` makes the table of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.algorithm_tables import (
    COLOURS,
    SMOOTHED,
    Measured,
    cost_table,
    equal_kl_table,
    golds_of,
    measured,
    plot,
    quality_table,
    steps_of,
    tokens_to_gold,
)
from benchmarks.common import (
    PLOTS,
    ROOT,
    RUNS,
    figures,
    finished,
    keep_figures,
    machine,
    machine_of,
    run_commit,
    train,
    write_section,
)
from benchmarks.seeds import reward_model, value_model
from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.config import PipelineRecipe, load_recipe
from dvpo_ray.runs.folder import CHECKPOINTS

GROUPS = {"grpo": (8, 4), "rloo": (8, 4), "p3o": (16, 2)}
SECTION = "algorithms"
# Where `--until-gold` gives up.
MOST_STEPS = 32
# Steps from one held-out evaluation to the next, from which the tokens to the wanted gold are read.
EVALUATED_EVERY = 4
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
    if finished(folder) is None:
        if kind == "dpo":
            train("dpo", dpo_tree(), folder, seed)
        else:
            train("policy", arm_tree(kind, seed), folder, seed)
    return folder


def longer(run: Path) -> Path:
    """The folder of what goes on where a run ended."""
    return run.with_name(f"{run.name}-on")


def gone_on(kind: str, seed: int) -> Path:
    """The folder of a run that begins where an arm ended."""
    before = place(kind, seed)
    folder = longer(before)
    if finished(folder) is None:
        tree = arm_tree(kind, seed)
        tree["policy"]["steps"] = MOST_STEPS
        checkpoint = CheckpointStore(before / CHECKPOINTS).newest()
        assert checkpoint is not None, f"{before} has no checkpoint"
        train("policy", tree, folder, seed, resume=str(checkpoint.folder))
    return folder


def arm_tree(kind: str, seed: int) -> dict[str, Any]:
    """The settings of an arm that generates answers."""
    guide = str(value_model(seed))
    tree = policy_tree(guide)
    policy = tree["policy"]
    policy["evaluation"]["every"] = EVALUATED_EVERY
    if kind != "dvpo":
        del policy["value_model"]
        policy["rewards"]["preference"] = {"type": "model", "folder": str(reward_model(seed))}
        policy["advantage"] = {"type": kind, "score": "none"}
    if kind == "ppo":
        critic = {"initial": guide, "learning_rate": policy["learner"]["learning_rate"]}
        policy["advantage"] = {"type": "ppo", "preset": "max", "critic": critic}
    if kind in GROUPS:
        policy["rollout"] |= dict(zip(("prompts_per_step", "answers_per_prompt"), GROUPS[kind], strict=True))
    return tree


def dpo_tree() -> dict[str, Any]:
    """DPO on all pairs once, with the policy's learner and evaluation."""
    recipe = load_recipe(PipelineRecipe, "demo")
    value = recipe.value_recipe().model_dump(mode="json", exclude_none=True)["value"]
    tree = policy_tree(guide="")
    policy = tree["policy"]
    section = {
        "data": value["data"],
        "pairs_per_step": 16,
        "learner": policy["learner"] | {"token_budget": value["learner"]["token_budget"]},
        "rollout": {
            key: value for key, value in policy["rollout"].items() if key not in ("prompts_per_step", "answers_per_prompt")
        },
        "evaluation": policy["evaluation"],
        "checkpoint": {"every": 0},
    }
    return {"model": tree["model"], "dpo": section}


def main() -> None:
    """Run the arms and write tables and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(COLOURS), default=list(COLOURS))
    parser.add_argument("--until-gold", action="store_true", help=f"go on up to {MOST_STEPS} steps to count the tokens it takes")
    parser.add_argument("--there", action="store_true", help="run nothing: the table of what has been run, here or elsewhere")
    given = parser.parse_args()
    # Seed by seed, so that what is compared was measured near in time: machines that are shared change their speed.
    for seed in [] if given.there else given.seeds:
        for kind in given.arms:
            made_at = run_commit(SECTION, place(kind, seed))
            run = arm(kind, seed)
            one = measured(run) | {"commit": made_at}
            more = given.until_gold or finished(longer(run)) is not None
            if more and one["tokens_to_held_out_gold"] is None and kind != "dpo":
                on = gone_on(kind, seed)
                golds = golds_of(run) | golds_of(on)
                one["tokens_to_held_out_gold"] = tokens_to_gold([*steps_of(run), *steps_of(on)], golds)
            keep_figures(SECTION, {run.name: one})
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
    body += quality_table(found) + "\n"
    if any("cut_share_after" not in one for by_seed in found.values() for one in by_seed.values()):
        body += "`-`: not recorded by these runs, whose intervals of gold are over prompts and not over subjects. "
    body += "A higher gold at a higher KL says that an algorithm is fast, not that it is better. At equal KL: gold of the "
    body += f"training answers (mean of {SMOOTHED} steps of 32) where a run first comes to that KL, on a straight line between "
    body += "neighbouring steps; `python -m benchmarks.algorithms --there` makes this table of the figures kept.\n\n"
    body += equal_kl_table(found) + "\n" + cost_table(found)
    body += f"\n![KL against gold]({image.relative_to(ROOT / 'benchmarks')})\n"
    where = machine_of(SECTION) if given.there else machine()
    write_section(SECTION, "DVPO and its rivals", "python -m benchmarks.algorithms", body, measured_on=where)
    print(body)


if __name__ == "__main__":
    main()
