"""Two ways in which rewards go wrong, on the demo's model and prompts.

`noise`: the rewards of every prompt are shifted by a number of its own, drawn from N(0, 5). P3O compares answers of one prompt
and does not see it; PPO does (arXiv 2310.00212). `exploit`: the reward counts exclamation marks, which is not what gold wants.
Plain PPO without KL follows it; the preset `max` with KL is held back (arXiv 2307.04964). Arms that have a result are not run
again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.algorithms import policy_tree, steps_of
from benchmarks.common import RUNS, finished, table, train, write_section
from benchmarks.seeds import demo
from dvpo_ray.demo.gold import vader_compound

SHIFT = 5.0
# Marks that earn as much as the best answer.
MOST_MARKS = 8


def shifted_gold(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Gold, plus a number drawn from N(0, ``SHIFT``) for each prompt."""
    seeds = [int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") for prompt in prompts]
    shifts = [float(np.random.default_rng(seed).normal(0.0, SHIFT)) for seed in seeds]
    return [score + shift for score, shift in zip(vader_compound(prompts, answers), shifts, strict=True)]


def exclamation_marks(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """How many of an answer's characters are exclamation marks, 1 for ``MOST_MARKS`` and more."""
    return [min(answer.count("!"), MOST_MARKS) / MOST_MARKS for answer in answers]


# Reward, advantage, answers to a prompt, KL coefficient.
ARMS: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "noise: `p3o`": ("shifted_gold", {"type": "p3o", "score": "none"}, 2, 0.05),
    "noise: `ppo`, preset `max`": ("shifted_gold", {"type": "ppo"}, 2, 0.05),
    "exploit: `ppo`, preset `plain`, no KL": ("exclamation_marks", {"type": "ppo", "preset": "plain"}, 1, 0.0),
    "exploit: `ppo`, preset `max`, KL": ("exclamation_marks", {"type": "ppo"}, 1, 0.1),
}


def arm(name: str, seed: int, steps: int) -> Path:
    """The folder of a finished run."""
    reward, advantage, answers, beta = ARMS[name]
    folder = RUNS / f"robustness-{list(ARMS).index(name)}-seed-{seed}"
    if finished(folder) is None:
        tree = policy_tree(str(demo(seed)["value_model"]))
        policy = tree["policy"]
        del policy["value_model"]
        policy["steps"] = steps
        policy["advantage"] = advantage
        policy["rewards"]["made"] = {"type": "function", "function": f"benchmarks.robustness:{reward}"}
        policy["rollout"] |= {"prompts_per_step": 32 // answers, "answers_per_prompt": answers}
        policy["kl"]["control"]["coefficient"] = beta
        # A run that is meant to go wrong is not to be ended for it.
        policy["health"] = policy.get("health", {}) | {"stop_after": 0}
        train("policy", tree, folder, seed)
    return folder


def main() -> None:
    """Run the arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=("noise", "exploit"), default=["noise", "exploit"])
    given = parser.parse_args()
    rows = []
    for name in (name for name in ARMS if name.partition(":")[0] in given.kinds):
        for seed in given.seeds:
            folder = arm(name, seed, given.steps)
            result, steps = json.loads((folder / "result.json").read_text()), steps_of(folder)
            first, last = steps[0], steps[-1]
            rows.append(
                [
                    name,
                    seed,
                    f"{result['gold_before']:.3f}",
                    f"{result['gold_after']:.3f} ({result['gold_after_ci95'][0]:.3f} to {result['gold_after_ci95'][1]:.3f})",
                    f"{first['reward/made']:.2f} to {last['reward/made']:.2f}",
                    f"{last['answer/tokens'] / first['answer/tokens']:.2f}",
                    f"{np.exp(last['policy/entropy'] - first['policy/entropy']):.2f}",
                    f"{last['kl/per_token']:.3f}",
                ]
            )
    header = ["arm", "seed", "gold before", "gold after (95%)", "reward", "length, of the start", "exp(entropy), of the start"]
    body = f"{given.steps} steps of 32 answers; the reward, length and entropy are those of the first and last step.\n\n"
    body += table([*header, "KL/token"], rows)
    write_section("robustness", "Rewards that go wrong", "python -m benchmarks.robustness", body)
    print(body)


if __name__ == "__main__":
    main()
