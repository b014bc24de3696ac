"""Which model ranks answers best: the global value model, a reward model of the same pairs, or PPO's online critic?

The value model is that of ``benchmarks.seeds``, the others those of ``benchmarks.algorithms``; all are asked about the demo's
held-out pairs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.algorithms import arm, reward_model
from benchmarks.common import ROOT, table, write_section
from benchmarks.seeds import demo
from dvpo_ray.config import PipelineRecipe, load_recipe
from jobs.evaluate import rank_pairs

HELD_OUT = ROOT / "dvpo_ray" / "demo" / "data" / "validation_pairs.jsonl.gz"


def models(seed: int) -> dict[str, Path]:
    """Folders of the three."""
    return {
        "global value model": Path(demo(seed)["value_model"]),
        "reward model": Path(reward_model(seed)),
        "critic of `ppo`, after its last step": arm("ppo", seed) / "critic",
    }


def accuracy(found: dict[str, Any], how: str) -> str:
    """Share of pairs ranked right, with its interval."""
    low, high = found[f"accuracy_{how}_ci95"]
    return f"{found['accuracy'][how]:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    """Ask all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    data = load_recipe(PipelineRecipe, "demo").value.data
    rows = []
    for seed in parser.parse_args().seeds:
        for what, folder in models(seed).items():
            found = rank_pairs(folder, str(HELD_OUT), data.max_prompt_tokens, data.max_answer_tokens)
            rows.append([what, seed, found["pairs"], accuracy(found, "mean"), accuracy(found, "last")])
    body = "Share of the demo's held-out pairs whose chosen answer scores higher, with 95% intervals over prompts; for a reward "
    body += "model and a critic the last value is what they are trained for.\n\n"
    body += table(["", "seed", "pairs", "by mean value", "by last value"], rows)
    write_section("critics", "Value model, reward model, online critic", "python -m benchmarks.critics", body)
    print(body)


if __name__ == "__main__":
    main()
