"""A value step of the demo against the same arithmetic bare, on this machine's GPU or CPU.

``python -m benchmarks.bare_step --run runs/demo`` reads the steps of a demo run (``make demo``), times a loop of one forward
pass, one backward pass and a fused AdamW on rows like the demo's, and writes one section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import figures, keep_figures, table, write_section
from dvpo_ray.io.json_files import read_object
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.planning.node_facts import NodeFacts, measure_node
from dvpo_ray.runs.folder import recorded_steps

SECTION = "bare_step"
# Eight pairs of answers of 30 tokens to prompts of 37, less their common beginning.
ROWS, TOKENS, STEPS, WARM = 16, 60, 20, 5


def bare_step(facts: NodeFacts) -> float:
    """Median seconds of a step of a bare loop: float32 weights, autocast where the device multiplies bfloat16."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if facts.is_gpu else "cpu"
    folder = resolve_model("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(100, 40000, (ROWS, TOKENS), device=device)
    seconds = []
    for _ in range(STEPS):
        _wait(device)
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=facts.multiplies_bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[WARM:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def of_run(run: Path) -> dict[str, Any]:
    """What a demo run took, in seconds."""
    value, whole = run / "value", read_object(run / "result.json")
    policy = recorded_steps(run / "policy")[1:]
    stages = ("rollout", "score", "learn", "sync")
    return {
        "value_step": median(line["seconds/step"] for line in recorded_steps(value)[1:]),
        "policy_step": median(line["seconds/step"] for line in policy),
        **{stage: median(line[f"seconds/{stage}"] for line in policy) for stage in stages},
        "whole": whole["seconds_value"] + whole["seconds_policy"],
        "gold": whole["gold_after"],
        "kl": whole["kl_per_token"],
        "number_types": "/".join(sorted(set(whole["number_types"].values()))),
    }


def main() -> None:
    """Measure, then write the table of all machines on file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="Folder of a demo run on this machine.")
    facts = measure_node()
    name = f"{facts.name}, Python {platform.python_version()}, torch {torch.__version__}"
    keep_figures(SECTION, {name: of_run(parser.parse_args().run) | {"bare_step": bare_step(facts)}})
    write_table()


def write_table() -> None:
    """The section of RESULTS.md, from the figures on file."""
    stages = ("rollout", "score", "learn", "sync")
    header = ["machine", "numbers", "bare step, s", "value step, s", "ratio", "policy step, s", *stages, "both halves, s"]
    header += ["gold", "KL/token"]
    rows = []
    for machine, one in figures(SECTION).items():
        steps = [one["bare_step"], one["value_step"], one["value_step"] / one["bare_step"], one["policy_step"]]
        rows.append([machine, one["number_types"], *steps, *(one[stage] for stage in stages)])
        rows[-1] += [f"{one['whole']:.0f}", one["gold"], one["kl"]]
    body = (
        f"The demo on several machines, and a bare loop on {ROWS} rows of {TOKENS} tokens: forward, backward, clip, fused AdamW. "
        "Medians; a value step trains 8 pairs, about 1,110 tokens.\n\n" + table(header, rows)
    )
    write_section(
        SECTION, "The demo against bare arithmetic", "make demo && python -m benchmarks.bare_step --run runs/demo", body
    )


if __name__ == "__main__":
    main()
