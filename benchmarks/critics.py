"""Which model ranks answers best: the global value model, a reward model of the same pairs, or PPO's online critic?

On the demo's held-out pairs the models are those of ``benchmarks.algorithms``.
With a file of HH-RLHF transcripts all three are trained on its first rows and asked about its last ones, whose prompts none of
them has seen. Models that have been trained are not trained again, and those left out by `--models` keep their figures in
`figures/critics.json`.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.algorithms import arm, policy_tree
from benchmarks.common import ROOT, RUNS, checkpoint, figures, finished, keep_figures, table, train, write_section
from benchmarks.seeds import reward_model, value_model
from dvpo_ray.config import PipelineRecipe, ValueRecipe, load_recipe
from dvpo_ray.data.formats import parse_pair
from jobs.evaluate import rank_pairs

HELD_OUT = ROOT / "dvpo_ray" / "demo" / "data" / "validation_pairs.jsonl.gz"
# Usable rows trained on; rows of the file from which these are taken; rows asked about, at its end.
USABLE, TRAINED_ON, ASKED_ABOUT = 1200, 1500, 600
SECTION = "critics"
COLUMNS = ["pairs", "by mean value", "by last value"]
MODELS = ("value", "reward", "critic")
NAMES = {"value": "global value model", "reward": "reward model"}


def demo_model(kind: str, seed: int) -> tuple[str, Path]:
    """Name and folder of one of ``MODELS`` on the demo's pairs."""
    if kind == "critic":
        return "critic of `ppo`, from the value model, after its last step", arm("ppo", seed) / "critic"
    return NAMES[kind], value_model(seed) if kind == "value" else reward_model(seed)


def human_model(kind: str, name: str, rows: list[dict[str, Any]], steps: int) -> tuple[str, Path]:
    """Name and folder of one of ``MODELS`` on human pairs."""
    pairs = write_rows(f"{name}-pairs", iter(rows[:TRAINED_ON]))
    if kind == "value":
        return NAMES[kind], human_value(f"{name}-value", pairs)
    reward = human_value(f"{name}-reward", pairs, {"type": "reward"})
    if kind == "reward":
        return NAMES[kind], reward
    return f"critic of `ppo`, from the reward model, after {steps} steps", human_critic(name, rows[:TRAINED_ON], reward, steps)


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
        prompts = write_rows(
            f"{name}-prompts", ({"prompt": [asdict(turn) for turn in parse_pair(row)[0]]} for row in rows if usable(row))
        )
        tree = policy_tree(str(reward))
        policy = tree["policy"]
        del policy["value_model"], policy["evaluation"]
        policy["steps"] = steps
        policy["data"] |= {"source": str(prompts), "max_prompt_tokens": 256, "max_bad_share": 0.5}
        policy["rollout"]["engine"]["max_model_len"] = 512
        # Their reward model was trained on answers that were cut, and are not given an end here either.
        policy["rewards"] = {"preference": {"type": "model", "folder": str(reward), "end_cut_answers": False}}
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
    """The rows asked about, in groups by their first question: none has that of a row trained on."""
    known = {first_question(row) for row in rows[:TRAINED_ON]}
    asked = ((row, first_question(row)) for row in rows[-ASKED_ABOUT:])
    return (row | {"group": question} for row, question in asked if question not in known)


def first_question(row: dict[str, Any]) -> str:
    """A transcript up to its first answer."""
    return str(row["chosen"]).partition("\n\nAssistant:")[0]


def write_rows(name: str, rows: Iterator[dict[str, Any]]) -> Path:
    """Rows as a file beside the runs."""
    path = RUNS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ranked(what: str, found: dict[str, Any], seed: int | None = None) -> dict[str, Any]:
    """What the table says of a model."""
    told = {how: [found["accuracy"][how], *found[f"accuracy_{how}_ci95"]] for how in ("mean", "last")}
    return {"what": what, "seed": seed, "pairs": found["pairs"], **told, "checkpoint": checkpoint()}


def line(one: dict[str, Any]) -> list[Any]:
    """The cells of ``COLUMNS``."""
    return [one["pairs"], *("{:.3f} ({:.3f} to {:.3f})".format(*one[how]) for how in ("mean", "last"))]


def ask_demo(kinds: Sequence[str], seeds: Sequence[int]) -> None:
    """Rank the demo's held-out pairs."""
    data = load_recipe(PipelineRecipe, "demo").value.data
    limits = data.max_prompt_tokens, data.max_answer_tokens
    for seed in seeds:
        for kind in kinds:
            what, folder = demo_model(kind, seed)
            found = rank_pairs(folder, str(HELD_OUT), *limits, critic=kind == "critic")
            keep_figures(SECTION, {f"demo-{seed}-{kind}": ranked(what, found, seed)})


def ask_human(kinds: Sequence[str], path: Path, steps: int) -> None:
    """Rank the last pairs of a file of transcripts."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        transcripts = [json.loads(text) for text in file]
    if len(transcripts) < TRAINED_ON + ASKED_ABOUT:
        raise SystemExit(f"{path}: {len(transcripts)} rows, {TRAINED_ON + ASKED_ABOUT} are needed")
    name = path.name.partition(".")[0]
    asked = str(write_rows(f"{name}-held-out", unseen(transcripts)))
    for kind in kinds:
        what, folder = human_model(kind, name, transcripts, steps)
        found = rank_pairs(folder, asked, 256, 64, "truncate_answer", critic=kind == "critic")
        keep_figures(SECTION, {f"human-{kind}": ranked(what, found)})


def main() -> None:
    """Ask all and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the demo's models; none leaves them out")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--human", type=Path, help="HH-RLHF file, .jsonl.gz")
    parser.add_argument("--human-steps", type=int, default=10, help="steps of PPO on its prompts")
    given = parser.parse_args()
    ask_demo(given.models, given.seeds)
    if given.human:
        ask_human(given.models, given.human, given.human_steps)
    known = figures(SECTION)
    demo = sorted((one for name, one in known.items() if name.startswith("demo-")), key=lambda one: (one["what"], one["seed"]))
    human = [known[name] for kind in MODELS if (name := f"human-{kind}") in known]
    body = (
        "Share of held-out pairs whose chosen answer scores higher, with 95% intervals over prompts, or groups of them. A reward "
        "model is trained at the last value alone, a critic at every state but the end: its last value is that of the state "
        "before the last token.\n\nThe demo's pairs:\n\n"
    )
    body += table(["", "seed", *COLUMNS], [[one["what"], one["seed"], *line(one)] for one in demo])
    if human:
        body += (
            f"\nHuman preferences, HH-RLHF harmless-base: trained on the first {USABLE} usable rows of its test file, asked "
            f"about the last {ASKED_ABOUT} without those whose first question was trained on; prompts of up to 256 tokens, the "
            "first 64 of each answer.\n\n"
        )
        body += table(["", *COLUMNS], [[one["what"], *line(one)] for one in human])
    write_section(SECTION, "Value model, reward model, online critic", "python -m benchmarks.critics --human FILE", body)
    print(body)


if __name__ == "__main__":
    main()
