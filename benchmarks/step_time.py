"""One training step, this project against TRL's trainers: same model, prompts, batch and answer length, one after the other.

DVPO is measured before and after the others, because the speed of a shared machine drifts; the mean of both counts. What was
measured is kept, so that a run that was broken off goes on; ``--again`` begins anew. TRL runs in an environment of its own,
made on first use from requirements-trl.txt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, RUNS, table, train, write_section
from dvpo_ray.config import PipelineRecipe, load_recipe
from dvpo_ray.models.packaged import cache_dir, resolve_model

REQUIREMENTS = Path(__file__).with_name("requirements-trl.txt")
PROMPTS = ROOT / "dvpo_ray" / "demo" / "data" / "train_prompts.jsonl.gz"
PARTS = ("rollout", "score", "learn", "sync")
# Trainer, type of the trained models' weights, and rows in one backward pass (the batch has 32).
PEERS = (
    ("ppo", "float32", 32),
    ("ppo", "bfloat16", 8),
    ("grpo", "float32", 32),
    ("rloo", "float32", 32),
)


def peer_python() -> Path:
    """The interpreter of TRL's environment, set up on first use."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache_dir() / f"trl-{key}"
    python = folder / "bin" / "python"
    mark = folder / ".complete"
    if not mark.exists():
        print(f"setting up TRL's environment in {folder} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
        mark.touch()
    return python


def kept(name: str, measure: Callable[[], dict[str, Any]], again: bool) -> dict[str, Any]:
    """What was measured under this name before, or is now."""
    path = RUNS / "step-time" / f"{name}.json"
    if again or not path.is_file():
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(measure()) + "\n")
        unfinished.replace(path)
    return json.loads(path.read_text())


def measure_trl(steps: int, trainer: str, weights: str, micro_batch: int) -> dict[str, Any]:
    """TRL's step time and peak memory, with one of ``PEERS``."""
    command = [str(peer_python()), str(Path(__file__).with_name("trl_step.py")), "--trainer", trainer]
    command += ["--model", str(resolve_model("smollm2-135m-instruct")), "--prompts", str(PROMPTS), "--steps", str(steps)]
    command += ["--weights", weights, "--micro-batch", str(micro_batch)]
    command += ["--monitor", str(ROOT / "dvpo_ray" / "memory.py"), "--output", str(RUNS / "trl")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment | {"OMP_NUM_THREADS": str(os.cpu_count())}
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def value_model() -> Path:
    """Any sealed value model of the demo's size: how good it is does not change the time of a step."""
    folder = RUNS / "step-time" / "value"
    if not (folder / "result.json").is_file():
        settings = load_recipe(PipelineRecipe, "demo", ["value.data.limit=32"]).value_recipe()
        train("value", settings.model_dump(mode="json", exclude_none=True), folder)
    return folder / "value-model"


def measure_ours(steps: int, algorithm: str = "dvpo_gae") -> dict[str, Any]:
    """This project's step time by part, and peak memory; its rivals are rewarded by a model of the same size."""
    folder = RUNS / "step-time" / algorithm
    settings = load_recipe(PipelineRecipe, "demo", [f"policy.steps={steps}"]).policy_recipe(str(value_model()))
    tree = settings.model_dump(mode="json", exclude_none=True)
    policy = tree["policy"]
    del policy["evaluation"]
    if algorithm != "dvpo_gae":
        policy["rewards"] = {"model": {"type": "model", "folder": policy.pop("value_model")}}
        policy["advantage"] = {"type": algorithm} | ({} if algorithm == "ppo" else {"score": "none"})
    if algorithm in ("grpo", "rloo"):
        policy["rollout"] |= {"prompts_per_step": 8, "answers_per_prompt": 4}
    train("policy", tree, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    result = json.loads((folder / "result.json").read_text())
    parts = {name: statistics.median(line[f"seconds/{name}"] for line in lines) for name in PARTS}
    tokens = statistics.median(line["answer/tokens"] for line in lines)
    return {
        "seconds_per_step": result["seconds_per_step"],
        "peak_memory_gb": result["peak_memory_gb"],
        "parts": parts,
        "tokens": tokens,
    }


def main() -> None:
    """Measure all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--trl-steps", type=int, default=4)
    parser.add_argument("--trainers", nargs="+", choices=("ppo", "grpo", "rloo"), default=["ppo", "grpo", "rloo"])
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    arguments = parser.parse_args()
    steps, again = arguments.steps, arguments.again
    value_model()
    before = kept(f"dvpo-before-{steps}", lambda: measure_ours(steps), again)
    ours = {name: kept(f"our-{name}-{steps}", partial(measure_ours, steps, name), again) for name in arguments.trainers}
    chosen = [peer for peer in PEERS if peer[0] in arguments.trainers]
    peers = {
        peer: kept(
            f"trl-{'-'.join(map(str, peer))}-{arguments.trl_steps}", partial(measure_trl, arguments.trl_steps, *peer), again
        )
        for peer in chosen
    }
    after = kept(f"dvpo-after-{steps}", lambda: measure_ours(steps), again)
    seconds = statistics.mean([before["seconds_per_step"], after["seconds_per_step"]])
    dvpo = {"seconds_per_step": seconds, "peak_memory_gb": max(before["peak_memory_gb"], after["peak_memory_gb"])}
    rows: list[list[Any]] = [["DVPO", dvpo["seconds_per_step"], dvpo["peak_memory_gb"], "", ""]]
    rows += [[f"our {name.upper()}", one["seconds_per_step"], one["peak_memory_gb"], "", ""] for name, one in ours.items()]
    for (trainer, weights, size), peer in peers.items():
        same = ours[trainer]
        rows.append(
            [
                f"TRL {trainer.upper()}, {weights} weights, micro-batch {size}",
                peer["seconds_per_step"],
                peer["peak_memory_gb"],
                f"{peer['seconds_per_step'] / seconds:.2f} / {peer['seconds_per_step'] / same['seconds_per_step']:.2f}",
                f"{dvpo['peak_memory_gb'] / peer['peak_memory_gb']:.2f} / {same['peak_memory_gb'] / peer['peak_memory_gb']:.2f}",
            ]
        )
    body = "32 answers of at most 40 tokens, to 32 prompts (GRPO and RLOO: 8), one epoch, SmolLM2-135M-Instruct, TRL 1.10; "
    body += "median of the steps after the first. All compute in bfloat16. Like this project, TRL with float32 weights updates "
    body += "a float32 copy of what it trains; with bfloat16 weights it has none, and rounds small updates away. "
    body += "Its micro-batch is the number of rows in one backward pass. Ratios are to DVPO and to the same algorithm here.\n\n"
    body += table(["", "seconds per step", "peak memory, GB (PSS)", "times slower than ours", "our memory to its"], rows)
    for when, one in {"before": before, "after": after}.items():
        parts = ", ".join(f"{name} {value:.2f} s" for name, value in one["parts"].items())
        body += (
            f"\nDVPO's step {when} the others': {one['seconds_per_step']:.2f} s ({parts}; {one['tokens']:.1f} tokens an answer, "
        )
        body += "TRL pads to 40)."
    body += "\n\n"
    lists = [f"{' '.join(map(str, peer))}: {', '.join(f'{s:.1f}' for s in one['steps'])} s" for peer, one in peers.items()]
    body += f"TRL's steps, {'; '.join(lists)}.\n"
    write_section("step_time", "Step time and memory against TRL's trainers", "python -m benchmarks.step_time", body)
    print(body)


if __name__ == "__main__":
    main()
