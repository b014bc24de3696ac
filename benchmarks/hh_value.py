"""Value pretraining on human preferences (HH-RLHF transcripts): pair accuracy on held-out prompts, with its interval."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import RUNS, dvpo, finished, table, write_section

NAME = "hh-harmless-value"


def main() -> None:
    """Train (unless it has been) and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="HH-RLHF file, .jsonl.gz")
    data = parser.parse_args().data
    result = finished(RUNS / NAME)
    if result is None:
        paths = ["--set", f"value.data.source={data.resolve()}", "--set", f"run.output_dir={RUNS}"]
        dvpo("value", "train", NAME, *paths, "--set", "run.overwrite=true")
        result = finished(RUNS / NAME)
    assert result is not None
    rows = []
    for how in ("mean", "last"):
        low, high = result[f"gvm_pair_accuracy_{how}_ci95"]
        rows.append([f"{how} value", result[f"gvm_pair_accuracy_{how}"], f"{low:.3f} to {high:.3f}"])
    counts = result["rows"]
    rejected = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts["rejected"].items())
    body = (
        f"{counts['read']} rows read, {counts['kept']} kept ({rejected or 'none rejected'}); {result['pairs']} pairs trained on, "
    )
    body += f"{result['held_out_pairs']} held out by prompt; {result['seconds_total'] / 60:.1f} minutes in all, "
    body += f"{result['peak_memory_gb']:.1f} GB.\n\n" + table(["held-out pair accuracy by", "", "95% interval"], rows)
    write_section("hh_value", "Human preferences: HH-RLHF harmless", f"python -m benchmarks.hh_value --data {data.name}", body)
    print(body)


if __name__ == "__main__":
    main()
