"""Make the demo's data: prompts and preference pairs of SmolLM2-135M-Instruct, ranked by the gold function.

Run it with the model folder and an output folder::

    python -m jobs.make_demo_data --model FOLDER --output dvpo_ray/demo/data

It writes ``train_pairs.jsonl.gz`` and ``validation_pairs.jsonl.gz`` (prompt, chosen, rejected and both gold scores) and
``train_prompts.jsonl.gz`` and ``test_prompts.jsonl.gz``, each with a prompt's subject as its ``group``: intervals are taken over
subjects. The gold scores are there for a reader; loaders ignore them.
"""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dvpo_ray.demo.gold import vader_compound
from dvpo_ray.demo.topics import Split, prompts
from dvpo_ray.planning.node_facts import measure_node


def sample_answers(model: Path, questions: list[str], per_prompt: int, max_tokens: int, seed: int) -> list[list[str]]:
    """Sample complete answers (those that end by themselves) from the model at temperature 1."""
    from vllm import LLM, SamplingParams

    dtype = "bfloat16" if measure_node().multiplies_bfloat16 else "float32"
    engine = LLM(str(model), dtype=dtype, enforce_eager=True, max_model_len=512, max_num_seqs=96, seed=seed)
    conversations: list[Any] = [[{"role": "user", "content": question}] for question in questions]
    sampling = SamplingParams(n=per_prompt, temperature=1.0, max_tokens=max_tokens)
    outputs = engine.chat(conversations, sampling)
    return [[o.text.strip() for o in out.outputs if o.finish_reason == "stop" and o.text.strip()] for out in outputs]


def rank_pairs(question: str, subject: str, answers: list[str], pairs_per_prompt: int, min_gap: float) -> list[dict[str, Any]]:
    """Disjoint pairs of distinct answers, best with worst first, whose gold differs by at least ``min_gap``."""
    distinct = list(dict.fromkeys(answers))
    gold = vader_compound([question] * len(distinct), distinct)
    ranked = sorted(zip(gold, distinct, strict=True))
    rows = []
    for (low, rejected), (high, chosen) in itertools.islice(
        zip(ranked, reversed(ranked), strict=True), min(pairs_per_prompt, len(ranked) // 2)
    ):
        if high - low >= min_gap:
            gold_scores = {"gold_chosen": round(high, 4), "gold_rejected": round(low, 4)}
            rows.append({"prompt": question, "group": subject, "chosen": chosen, "rejected": rejected, **gold_scores})
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write gzipped JSON lines that are the same bytes for the same rows."""
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        for number, row in enumerate(rows):
            packed.write((json.dumps({"id": f"{path.name.split('.')[0]}-{number}", **row}) + "\n").encode())
    typer.echo(f"{path}: {len(rows)} rows")


def main(
    model: Annotated[Path, typer.Option(help="Model folder to sample from.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    per_prompt: Annotated[int, typer.Option(help="Answers sampled for a prompt.")] = 8,
    pairs_per_prompt: Annotated[int, typer.Option(help="Most pairs made of one prompt's answers.")] = 2,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 48,
    min_gap: Annotated[float, typer.Option(help="Least gold difference within a pair.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
) -> None:
    """Sample, rank and write."""
    output.mkdir(parents=True, exist_ok=True)
    splits: tuple[Split, ...] = ("train", "validation")
    questions = {split: prompts(split) for split in splits}
    everything = [q for split in splits for q in questions[split]]
    answers = dict(zip(everything, sample_answers(model, everything, per_prompt, max_tokens, seed), strict=True))
    for split in splits:
        rows = [
            row
            for question, subject in questions[split].items()
            for row in rank_pairs(question, subject, answers[question], pairs_per_prompt, min_gap)
        ]
        write_rows(output / f"{split}_pairs.jsonl.gz", rows)
    for name, asked in (("train_prompts", questions["train"]), ("test_prompts", prompts("test"))):
        write_rows(output / f"{name}.jsonl.gz", [{"prompt": question, "group": asked[question]} for question in asked])


if __name__ == "__main__":
    typer.run(main)
