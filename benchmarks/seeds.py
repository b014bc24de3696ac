"""The demo over several seeds: is its result a matter of luck?

Every seed is a whole demo of its own (value pretraining and policy training); finished seeds are not run again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any, Literal

from benchmarks.common import RUNS, dvpo, finished, mean_of, table, train, write_section
from dvpo_ray.config import PipelineRecipe, load_recipe

COLUMNS = (
    "gold_before",
    "gold_after",
    "win_rate",
    "kl_per_token",
    "cut_share_after",
    "gvm_pair_accuracy_mean",
    "gvm_pair_accuracy_last",
    "logprob_gap_mean",
    "logprob_gap_kl_k3",
    "seconds_per_step",
    "seconds_total",
    "peak_memory_gb",
)


def demo(seed: int) -> dict[str, Any]:
    """The result of one seed's demo, run if it has not been yet."""
    name = f"demo-seed-{seed}"
    result = finished(RUNS / name)
    if result is None:
        dvpo("demo", "--set", f"run.name={name}", "--set", f"run.output_dir={RUNS}", "--set", f"run.seed={seed}")
        result = finished(RUNS / name)
    assert result is not None
    return result


def value_model(seed: int) -> Path:
    """The folder of a seed's value model: that of its demo where it has been run, else trained by the same recipe alone."""
    whole = finished(RUNS / f"demo-seed-{seed}")
    if whole is not None:
        return Path(whole["value_model"])
    return model_of_pairs("value", seed)


def reward_model(seed: int) -> Path:
    """The folder of a seed's reward model, trained as long as its value model."""
    return model_of_pairs("reward", seed)


def model_of_pairs(kind: Literal["value", "reward"], seed: int) -> Path:
    """The folder of a model trained on the demo's pairs by its recipe."""
    folder = RUNS / f"{kind}-seed-{seed}"
    if finished(folder) is None:
        tree = load_recipe(PipelineRecipe, "demo").value_recipe().model_dump(mode="json", exclude_none=True)
        if kind == "reward":
            tree["value"]["target"] = {"type": "reward"}
        train(kind, tree, folder, seed)
    return folder / f"{kind}-model"


def main() -> None:
    """Run the seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    results = [demo(seed) for seed in seeds]
    rows = [[name, *(result.get(name, "-") for result in results), mean_of(results, name)] for name in COLUMNS]
    golds = [result["gold_after"] for result in results]
    body = table(["", *(f"seed {seed}" for seed in seeds), "mean"], rows)
    body += f"\nHeld-out gold after training: mean {statistics.mean(golds):.3f}, worst {min(golds):.3f}.\n"
    write_section("seeds", "The demo over seeds", "python -m benchmarks.seeds", body)
    print(body)


if __name__ == "__main__":
    main()
