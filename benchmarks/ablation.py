"""Which advantage learns? Four estimators, three seeds, the same value model, prompts and steps for all arms of a seed.

Each seed's value model and its `dvpo_gae` arm are the ones of `benchmarks.seeds`. Arms are resumable: one that has a
result is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import PLOTS, ROOT, RUNS, finished, mean_of, table, train, write_section
from benchmarks.seeds import demo
from dvpo_ray.config import PipelineRecipe, load_recipe

ARMS = ("dvpo_gae", "dvpo_onestep", "dvpo_static", "dvpo_released")
READING = (
    "After equally many steps these are speeds and not qualities: gold stands in the order of KL, along much the same line of "
    "gold against KL, and more steps or a larger learning rate bring the slower ones on. `dvpo_released` is for replication "
    "alone: its last token gets no credit for what it is, which costs little on a score that all tokens add to."
)
COLOURS = {"dvpo_gae": "#0b6e4f", "dvpo_onestep": "#1f6feb", "dvpo_static": "#c77700", "dvpo_released": "#b42318"}


def arm(kind: str, seed: int) -> Path:
    """The folder of a finished policy run."""
    value_model = Path(demo(seed)["value_model"])
    if kind == "dvpo_gae":
        return RUNS / f"demo-seed-{seed}" / "policy"
    folder = RUNS / f"{kind}-seed-{seed}"
    if finished(folder) is None:
        settings = load_recipe(PipelineRecipe, "demo").policy_recipe(str(value_model))
        tree: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
        tree["policy"]["advantage"] = {"type": kind}
        train("policy", tree, folder, seed)
    return folder


def plot(folders: dict[str, list[Path]], path: Path) -> None:
    """Frozen value of the answers' ends over steps, and held-out gold, for every arm: mean of seeds and their range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, golds) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained")
    for kind, runs in folders.items():
        series = [_series(run, "value/last") for run in runs]
        steps = range(1, min(map(len, series)) + 1)
        mean = [statistics.mean(s[i - 1] for s in series) for i in steps]
        curves.plot(steps, mean, color=COLOURS[kind], label=kind)
        curves.fill_between(
            steps,
            [min(s[i - 1] for s in series) for i in steps],
            [max(s[i - 1] for s in series) for i in steps],
            color=COLOURS[kind],
            alpha=0.15,
            linewidth=0,
        )
    for i, (kind, runs) in enumerate(folders.items()):
        after = [json.loads((run / "result.json").read_text())["gold_after"] for run in runs]
        golds.bar(i, statistics.mean(after), color=COLOURS[kind], alpha=0.6)
        golds.scatter([i] * len(after), after, color=COLOURS[kind], zorder=3)
    before = json.loads((next(iter(folders.values()))[0] / "result.json").read_text())["gold_before"]
    golds.axhline(before, color="#222", linestyle="--", linewidth=1)
    golds.set_xticks(range(len(folders)), [kind.removeprefix("dvpo_") for kind in folders])
    golds.set_ylabel("held-out gold after training (dashed: before)")
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.set_xlabel("step")
    curves.set_ylabel("frozen value at the answer's end")
    curves.legend(frameon=False)
    for axes in (curves, golds):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _series(run: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line and "seconds/step" in line]


def main() -> None:
    """Run the arms and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    began = time.time()
    folders: dict[str, list[Path]] = {kind: [] for kind in ARMS}
    for seed in seeds:
        for kind in ARMS:
            folders[kind].append(arm(kind, seed))
    rows = []
    for kind, runs in folders.items():
        results = [json.loads((run / "result.json").read_text()) for run in runs]
        golds = [r["gold_after"] for r in results]
        names = ("win_rate", "kl_per_token", "tokens_after", "cut_share_after", "seconds_per_step")
        others = [mean_of(results, name) for name in names]
        rows.append([f"`{kind}`", *golds, statistics.mean(golds), statistics.stdev(golds) if len(golds) > 1 else 0.0, *others])
    before = statistics.mean(json.loads((run / "result.json").read_text())["gold_before"] for run in folders[ARMS[0]])
    header = [
        "advantage",
        *(f"gold, seed {s}" for s in seeds),
        "mean",
        "sd",
        "win rate",
        "KL/token",
        "tokens",
        "answers cut",
        "s/step",
    ]
    image = PLOTS / "ablation.png"
    plot(folders, image)
    body = f"Held-out gold before training: {before:.3f} (mean of seeds). {READING}\n\n" + table(header, rows)
    body += f"\n![ablation]({image.relative_to(ROOT / 'benchmarks')})\n"
    write_section("ablation", "Ablation of the advantage", "python -m benchmarks.ablation", body)
    print(body)
    print(f"this call took {(time.time() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
