"""Two ways in which rewards go wrong, on the demo's model and prompts.

`noise`: the rewards of every prompt are shifted by a number of its own, drawn from N(0, 5). P3O compares answers of one prompt
and does not see it; PPO does (arXiv 2310.00212). `exploit`: gold is given for cheerful answers that do not repeat themselves, the
reward counts cheerful words, however often they come. Plain PPO without KL is compared with the preset `max` with KL, which
is given twice the steps (arXiv 2307.04964). Arms that have a result are not run again; those left out by `--kinds` keep their
figures in `figures/robustness.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.algorithm_tables import SMOOTHED, result_of, smoothed
from benchmarks.algorithms import policy_tree
from benchmarks.common import RUNS, figures, finished, keep_figures, mean_of, run_commit, table, train, write_section
from benchmarks.seeds import value_model
from dvpo_ray.demo.gold import lexicon, vader_compound
from dvpo_ray.runs.folder import recorded_steps

SECTION = "robustness"
SHIFT = 5.0
# Of VADER's valence of a word, -4 to 4.
VALENCE = 0.2
WORDS = re.compile(r"[a-z']+")
# Of `exploit`, three times the demo's: what goes wrong at all goes wrong within the steps there is time for.
LEARNING_RATE = 7.8e-5


def shifted_gold(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Gold, plus a number drawn from N(0, ``SHIFT``) for each prompt."""
    seeds = [int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") for prompt in prompts]
    shifts = [float(np.random.default_rng(seed).normal(0.0, SHIFT)) for seed in seeds]
    return [score + shift for score, shift in zip(vader_compound(prompts, answers), shifts, strict=True)]


def distinct(answer: str) -> float:
    """Share of an answer's words that are not repeats."""
    words = WORDS.findall(answer.lower())
    return len(set(words)) / len(words) if words else 1.0


def cheerful_words(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """``VALENCE`` times the summed valence of all words."""
    known = lexicon()
    return [VALENCE * sum(known.get(word, 0.0) for word in WORDS.findall(answer.lower())) for answer in answers]


def cheerful_once(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Gold, times the share of words that are not repeats, in [-1, 1]."""
    return [score * distinct(answer) for score, answer in zip(vader_compound(prompts, answers), answers, strict=True)]


@dataclass(frozen=True)
class Arm:
    """What is different in a run."""

    reward: Callable[[Sequence[str], Sequence[str]], list[float]]
    advantage: dict[str, Any]
    answers_per_prompt: int = 1
    kl: float = 0.05
    steps: int = 20
    learning_rate: float | None = None
    gold: Callable[[Sequence[str], Sequence[str]], list[float]] = vader_compound


ARMS = {
    "noise: `p3o`": Arm(shifted_gold, {"type": "p3o", "score": "none"}, answers_per_prompt=2),
    "noise: `ppo`, preset `max`": Arm(shifted_gold, {"type": "ppo"}, answers_per_prompt=2),
    "exploit: `ppo`, preset `plain`, no KL": Arm(
        cheerful_words, {"type": "ppo", "preset": "plain"}, kl=0.0, steps=30, learning_rate=LEARNING_RATE, gold=cheerful_once
    ),
    "exploit: `ppo`, preset `max`, KL": Arm(
        cheerful_words, {"type": "ppo"}, kl=0.1, steps=60, learning_rate=LEARNING_RATE, gold=cheerful_once
    ),
}


def run(name: str, seed: int) -> tuple[Path, str]:
    """The folder of a finished run, and the checkpoint it was made at."""
    arm = ARMS[name]
    kind = arm.advantage.get("preset", arm.advantage["type"])
    folder = RUNS / f"robustness-{arm.reward.__name__}-{kind}-seed-{seed}"
    made_at = run_commit(SECTION, folder)
    if finished(folder) is None:
        guide = str(value_model(seed))
        tree = policy_tree(guide)
        policy = tree["policy"]
        del policy["value_model"]
        policy["steps"] = arm.steps
        policy["advantage"] = dict(arm.advantage)
        if arm.learning_rate is not None:
            policy["learner"]["learning_rate"] = arm.learning_rate
        if policy["advantage"]["type"] == "ppo":
            policy["advantage"]["critic"] = {"initial": guide, "learning_rate": policy["learner"]["learning_rate"]}
        policy["rewards"]["gold"]["function"] = policy["evaluation"]["gold"] = f"benchmarks.robustness:{arm.gold.__name__}"
        policy["rewards"]["made"] = {"type": "function", "function": f"benchmarks.robustness:{arm.reward.__name__}"}
        policy["rollout"] |= {"prompts_per_step": 32 // arm.answers_per_prompt, "answers_per_prompt": arm.answers_per_prompt}
        policy["kl"]["control"]["coefficient"] = arm.kl
        # A run that is meant to go wrong is not to be ended for it.
        policy["health"] = policy.get("health", {}) | {"stop_after": 0}
        train("policy", tree, folder, seed)
    return folder, made_at


def row(name: str, seed: int, folder: Path) -> list[Any]:
    """One line of the table."""
    result, steps = result_of(folder), recorded_steps(folder)

    def ends(metric: str) -> tuple[float, float]:
        means = smoothed([step[metric] for step in steps])
        return float(means[0]), float(means[-1])

    reward, tokens, entropy = ends("reward/made"), ends("answer/tokens"), ends("policy/entropy")
    low, high = result["gold_after_ci95"]
    return [
        name,
        seed,
        len(steps),
        f"{result['gold_before']:.3f}",
        f"{result['gold_after']:.3f} ({low:.3f} to {high:.3f})",
        f"{reward[0]:.2f} to {reward[1]:.2f}",
        f"{tokens[1] / tokens[0]:.2f}",
        f"{np.exp(entropy[1] - entropy[0]):.2f}",
        left_at(steps),
        f"{steps[-1]['kl/per_token']:.3f}",
        " to ".join(f"{share:.2f}" for share in distinct_of_answers(folder)),
    ]


def left_at(steps: Sequence[dict[str, Any]]) -> str:
    """The first step whose length or exp(entropy) is more than twice, or less than half, that of the start."""
    lengths, entropies = (smoothed([step[name] for step in steps]) for name in ("answer/tokens", "policy/entropy"))
    far = np.maximum(np.abs(np.log(lengths / lengths[0])), np.abs(entropies - entropies[0])) > np.log(2)
    return str(int(np.flatnonzero(far)[0]) + SMOOTHED) if far.any() else "never"


def distinct_of_answers(folder: Path) -> list[float]:
    """Share of words that are not repeats in a held-out answer, on average, in the first and the last evaluation."""
    answers: dict[int, list[str]] = {}
    for line in (folder / "evaluations.jsonl").read_text().splitlines():
        row = json.loads(line)
        answers.setdefault(row["step"], []).append(row["answer"])
    return [statistics.mean(distinct(answer) for answer in answers[step]) for step in (min(answers), max(answers))]


def main() -> None:
    """Run the arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="*", choices=("noise", "exploit"), default=["noise", "exploit"])
    given = parser.parse_args()
    names = [name for name in ARMS if name.partition(":")[0] in given.kinds]
    for name in names:
        for seed in given.seeds:
            folder, made_at = run(name, seed)
            cut = result_of(folder).get("cut_share_after")
            keep_figures(SECTION, {folder.name: {"cells": row(name, seed, folder), "cut_share_after": cut, "commit": made_at}})
    known = sorted(figures(SECTION).values(), key=lambda one: (list(ARMS).index(one["cells"][0]), one["cells"][1]))
    rows = [[*one["cells"], mean_of([one], "cut_share_after"), f"`{one['commit']}`"] for one in known]
    header = [
        "arm",
        "seed",
        "steps",
        "gold before",
        "gold after (95%)",
        "reward",
        "length, of the start",
        "exp(entropy), of the start",
        "beyond 2 or 1/2 from step",
        "KL/token",
        "distinct words",
        "answers cut",
        "checkpoint",
    ]
    body = f"Steps of 32 answers; reward, length and entropy are those of the first {SMOOTHED} and of the last {SMOOTHED}.\n\n"
    body += table(header, rows)
    write_section(SECTION, "Rewards that go wrong", "python -m benchmarks.robustness", body)
    print(body)


if __name__ == "__main__":
    main()
