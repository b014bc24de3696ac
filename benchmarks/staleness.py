"""Does training on answers of older weights cost quality? Generation runs up to k steps ahead, with and without correction.

Each seed's value model and its run without staleness are the ones of ``benchmarks.seeds``. Arms are resumable: one that has a
result is not run again. Generation, scoring and learning get one thread each: they run at the same time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.common import RUNS, finished, mean_of, table, train, write_section
from benchmarks.seeds import demo
from dvpo_ray.config import PipelineRecipe, load_recipe

STREAMED: dict[str, Any] = {
    "streaming": True,
    "advantage": {"whitening": "scale"},
    "ppo": {"loss_normaliser": "limit"},
    "scorer": {"rows_per_call": 8, "cpu_threads": 1},
    "rollout": {"cpu_threads": 1},
    "learner": {"cpu_threads": 1},
}
ARMS: dict[str, dict[str, Any]] = {
    "k = 0": {},
    "k = 1, streamed": STREAMED | {"off_policy": {"max_staleness": 1}},
    "k = 4, streamed, truncated weights": STREAMED | {"off_policy": {"max_staleness": 4}},
    "k = 4, streamed, uncorrected": STREAMED | {"off_policy": {"max_staleness": 4, "correction": "none"}},
}


def arm(name: str, seed: int) -> Path:
    """The folder of a finished policy run."""
    value_model = demo(seed)["value_model"]
    if not ARMS[name]:
        return RUNS / f"demo-seed-{seed}" / "policy"
    folder = RUNS / f"staleness-{list(ARMS).index(name)}-seed-{seed}"
    if finished(folder) is None:
        settings = load_recipe(PipelineRecipe, "demo").policy_recipe(value_model)
        tree: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
        for section, changes in ARMS[name].items():
            old = tree["policy"].get(section)
            tree["policy"][section] = old | changes if isinstance(old, dict) else changes
        train("policy", tree, folder, seed)
    return folder


def main() -> None:
    """Run the arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    folders: dict[str, list[Path]] = {name: [] for name in ARMS}
    for seed in seeds:
        for name in ARMS:
            folders[name].append(arm(name, seed))
    rows = []
    for name, runs in folders.items():
        results = [json.loads((run / "result.json").read_text()) for run in runs]
        steps = [
            line
            for run in runs
            for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "seconds/step" in line
        ]
        golds = [r["gold_after"] for r in results]
        ages = [step.get("staleness/mean", 0.0) for step in steps]
        dropped = sum(step.get("ledger/dead_lettered", 0.0) for step in steps if step["step"] == max(s["step"] for s in steps))
        others = [mean_of(results, "kl_per_token"), mean_of(results, "cut_share_after"), statistics.mean(ages), dropped]
        rows.append([name, *golds, statistics.mean(golds), *others])
    header = ["", *(f"gold, seed {s}" for s in seeds), "mean", "KL/token", "answers cut", "mean age of tokens, steps"]
    header.append("answers dropped")
    body = table(header, rows)
    write_section("staleness", "Quality when generation runs ahead", "python -m benchmarks.staleness", body)
    print(body)


if __name__ == "__main__":
    main()
