"""Share of padding in micro-batches of human preference data: lengths of HH-RLHF transcripts between 20 and 400 tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from benchmarks.common import table, write_section
from dvpo_ray.data import DeadLetters, load_pairs
from dvpo_ray.learning.batching import micro_batches
from dvpo_ray.models.packaged import resolve_model

SHORTEST, LONGEST = 20, 400
SAMPLES = 20


def lengths_of(data: Path) -> np.ndarray:
    """Tokens of every prompt with its chosen, and with its rejected, answer."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct"))
    with DeadLetters(None) as letters:
        limits = {"max_prompt_tokens": LONGEST, "max_answer_tokens": LONGEST}
        pairs, _ = load_pairs(str(data), tokenizer, **limits, dead_letters=letters)
    found = np.array([len(p.prompt_ids) + len(ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)])
    return found[(found >= SHORTEST) & (found <= LONGEST)]


def main() -> None:
    """Sample steps of several sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="HH-RLHF file, .jsonl.gz")
    data = parser.parse_args().data
    lengths = lengths_of(data)
    random = np.random.default_rng(0)
    lines = []
    for rows in (32, 64, 128, 512):
        steps = [random.choice(lengths, rows, replace=False) for _ in range(SAMPLES)]
        for budget in (1400, 4096, 8192):
            line = [rows, budget]
            for share in (1.0, 0.05):
                groups = [micro_batches([int(n) for n in step], budget, share) for step in steps]
                padded = sum(len(g) * max(step[i] for i in g) for step, found in zip(steps, groups, strict=True) for g in found)
                real = sum(int(step.sum()) for step in steps)
                line += [f"{1 - real / padded:.1%}", f"{np.mean([len(found) for found in groups]):.1f}"]
            lines.append(line)
    header = ["rows a step", "token_budget", "padding, no limit", "micro-batches", "padding, max_padding = 0.05", "micro-batches"]
    body = f"{lengths.size} rows of {SHORTEST} to {LONGEST} tokens, {lengths.mean():.0f} on average; {SAMPLES} random steps of "
    body += "each size.\n\n" + table(header, lines)
    write_section("padding", "Padding on HH-RLHF lengths", f"python -m benchmarks.padding --data {data.name}", body)
    print(body)


if __name__ == "__main__":
    main()
