"""Which model ranks answers best: the global value model, a reward model of the same pairs, or PPO's online critic?

On the demo's held-out pairs the models are those of ``benchmarks.algorithms``.
With a file of HH-RLHF transcripts all three are trained on its first rows and asked about its last ones, whose prompts none of
them has seen. Models that have been trained are not trained again.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.algorithms import arm, policy_tree, reward_model
from benchmarks.common import ROOT, RUNS, finished, table, train, write_section
from benchmarks.seeds import value_model
from dvpo_ray.config import PipelineRecipe, ValueRecipe, load_recipe
from dvpo_ray.data.formats import parse_pair
from jobs.evaluate import rank_pairs

HELD_OUT = ROOT / "dvpo_ray" / "demo" / "data" / "validation_pairs.jsonl.gz"
# Usable rows trained on; rows of the file from which these are taken; rows asked about, at its end.
USABLE, TRAINED_ON, ASKED_ABOUT = 1200, 1500, 600
COLUMNS = ["pairs", "by mean value", "by last value"]


def demo_models(seed: int) -> dict[str, Path]:
    """Folders of the three on the demo's pairs."""
    return {
        "global value model": value_model(seed),
        "reward model": Path(reward_model(seed)),
        "critic of `ppo`, after its last step": arm("ppo", seed) / "critic",
    }


def human_models(name: str, rows: list[dict[str, Any]], steps: int) -> dict[str, Path]:
    """Folders of the three on human pairs; without ``steps`` of PPO there is no critic."""
    pairs = write_rows(f"{name}-pairs", iter(rows[:TRAINED_ON]))
    value, reward = human_value(f"{name}-value", pairs), human_value(f"{name}-reward", pairs, {"type": "reward"})
    models = {"global value model": value, "reward model": reward}
    if steps:
        models[f"critic of `ppo`, from the reward model, after {steps} steps"] = human_critic(
            name, rows[:TRAINED_ON], reward, steps
        )
    return models


def human_value(name: str, pairs: Path, target: dict[str, Any] | None = None) -> Path:
    """A model trained by the recipe for human preferences, towards its own target or another."""
    if finished(RUNS / name) is None:
        tree = load_recipe(ValueRecipe, "hh-harmless-value").model_dump(mode="json", exclude_none=True)
        tree["value"]["data"] |= {"source": str(pairs), "limit": USABLE}
        tree["value"] |= {"target": target} if target else {}
        train("reward" if target else "value", tree, RUNS / name)
    return RUNS / name / ("reward-model" if target else "value-model")


def human_critic(name: str, rows: list[dict[str, Any]], reward: Path, steps: int) -> Path:
    """The critic of PPO on the prompts of human pairs, rewarded by their reward model, from which it starts."""
    folder = RUNS / f"{name}-ppo-{steps}"
    if finished(folder) is None:
        prompts = write_rows(f"{name}-prompts", ({"prompt": parse_pair(row)[0]} for row in rows if usable(row)))
        tree = policy_tree(str(reward))
        policy = tree["policy"]
        del policy["value_model"], policy["evaluation"]
        policy["steps"] = steps
        policy["data"] |= {"source": str(prompts), "max_prompt_tokens": 256, "max_bad_share": 0.5}
        policy["rollout"]["engine"]["max_model_len"] = 512
        policy["rewards"] = {"preference": {"type": "model", "folder": str(reward)}}
        critic = {"initial": str(reward), "learning_rate": policy["learner"]["learning_rate"]}
        policy["advantage"] = {"type": "ppo", "preset": "max", "critic": critic}
        train("policy", tree, folder)
    return folder / "critic"


def usable(row: dict[str, Any]) -> bool:
    """Whether a prompt can be read from a row."""
    try:
        parse_pair(row)
    except ValueError:
        return False
    return True


def unseen(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows asked about: none has the first question of a row trained on."""
    known = {first_question(row) for row in rows[:TRAINED_ON]}
    return (row for row in rows[-ASKED_ABOUT:] if first_question(row) not in known)


def first_question(row: dict[str, Any]) -> str:
    """A transcript up to its first answer."""
    return str(row["chosen"]).partition("\n\nAssistant:")[0]


def write_rows(name: str, rows: Iterator[dict[str, Any]]) -> Path:
    """Rows as a file beside the runs."""
    path = RUNS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def accuracy(found: dict[str, Any], how: str) -> str:
    """Share of pairs ranked right, with its interval."""
    low, high = found[f"accuracy_{how}_ci95"]
    return f"{found['accuracy'][how]:.3f} ({low:.3f} to {high:.3f})"


def line(found: dict[str, Any]) -> list[Any]:
    """The cells of ``COLUMNS``."""
    return [found["pairs"], accuracy(found, "mean"), accuracy(found, "last")]


def human_table(path: Path, steps: int) -> str:
    """All on a file of transcripts."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        transcripts = [json.loads(text) for text in file]
    if len(transcripts) < TRAINED_ON + ASKED_ABOUT:
        raise SystemExit(f"{path}: {len(transcripts)} rows, {TRAINED_ON + ASKED_ABOUT} are needed")
    name = path.name.partition(".")[0]
    asked = str(write_rows(f"{name}-held-out", unseen(transcripts)))
    models = human_models(name, transcripts, steps)
    rows = [[what, *line(rank_pairs(folder, asked, 256, 64, "truncate_answer"))] for what, folder in models.items()]
    return (
        f"\nHuman preferences, {name}: trained on the first {USABLE} usable rows, asked about the last "
        f"{ASKED_ABOUT} without those whose first question was trained on; prompts of up to 256 tokens, the first 64 of each "
        "answer.\n\n" + table(["", *COLUMNS], rows)
    )


def main() -> None:
    """Ask all and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--human", type=Path, help="HH-RLHF file, .jsonl.gz")
    parser.add_argument("--human-steps", type=int, default=10, help="steps of PPO on its prompts; 0 leaves the critic out")
    given = parser.parse_args()
    data = load_recipe(PipelineRecipe, "demo").value.data
    rows = [
        [what, seed, *line(rank_pairs(folder, str(HELD_OUT), data.max_prompt_tokens, data.max_answer_tokens))]
        for seed in given.seeds
        for what, folder in demo_models(seed).items()
    ]
    body = "Share of held-out pairs whose chosen answer scores higher, with 95% intervals over prompts; for a reward model and a "
    body += "critic the last value is what they are trained for.\n\nThe demo's pairs:\n\n" + table(["", "seed", *COLUMNS], rows)
    command = "python -m benchmarks.critics"
    if given.human:
        command += f" --human {given.human.name}"
        body += human_table(given.human, given.human_steps)
    write_section("critics", "Value model, reward model, online critic", command, body)
    print(body)


if __name__ == "__main__":
    main()
