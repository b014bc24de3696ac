"""What all benchmarks share: where runs lie, facts of the machine, and one section each in RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from dvpo_ray.config import PipelineRecipe, load_recipe
from dvpo_ray.config.loading import to_toml
from dvpo_ray.models.packaged import resolve_model
from dvpo_ray.planning.device_defaults import ROLES, settle
from dvpo_ray.planning.node_facts import NodeFacts, measure_node
from dvpo_ray.planning.shapes import ModelShape

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PLOTS = ROOT / "benchmarks" / "plots"
FIGURES = ROOT / "benchmarks" / "figures"

# From the best on.
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}


def dvpo(*arguments: str) -> None:
    """Run the ``dvpo`` command in a process of its own, its progress passed through.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "jobs.cli.main", *arguments], check=True, cwd=ROOT, env=environment)


def demo_recipe(facts: NodeFacts | None = None) -> PipelineRecipe:
    """The demo's recipe, with what it leaves to the device decided for a device, by default this machine."""
    recipe = load_recipe(PipelineRecipe, "demo")
    shape = ModelShape.from_folder(resolve_model(recipe.model.path))
    return settle(recipe, {role: [facts or measure_node()] for role in ROLES}, shape)[0]


def train(kind: str, tree: dict[str, Any], folder: Path, seed: int = 0, resume: str = "never") -> None:
    """Run ``dvpo value|policy train`` on a tree of settings, kept as a recipe file beside the run's folder."""
    run = {"name": folder.name, "output_dir": str(folder.parent), "seed": seed, "overwrite": True, "resume": resume}
    recipe = folder.parent / f"{folder.name}.toml"
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(to_toml(tree | {"run": run}))
    dvpo(kind, "train", str(recipe))


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a run that ended well, or None: this is how benchmarks resume."""
    result = folder / "result.json"
    return json.loads(result.read_text()) if result.is_file() else None


def checkpoint() -> str:
    """The code's short checkpoint, empty outside a checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def figures(section: str) -> dict[str, dict[str, Any]]:
    """What was measured for a section of RESULTS.md, by run: runs are not kept with the code, these are."""
    path = FIGURES / f"{section}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def run_commit(section: str, folder: Path) -> str:
    """The checkpoint at which a run is made: this one, or for a run that is there already, that of its figures."""
    return checkpoint() if finished(folder) is None else str(figures(section).get(folder.name, {}).get("checkpoint", ""))


def keep_figures(section: str, measured: dict[str, dict[str, Any]]) -> None:
    """Add what was measured, by run; a run of that name is replaced. One line a run."""
    FIGURES.mkdir(exist_ok=True)
    known = figures(section) | measured
    lines = (f"  {json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
    (FIGURES / f"{section}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def machine() -> str:
    """One line on this machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        facts = dict(line.replace("\t", "").split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        model = facts.get("model name", model).strip()
        # Processors of one name may differ in what decides the speed.
        widest = [name for flag, name in INSTRUCTIONS.items() if flag in facts.get("flags", "").split()]
        model += f", {widest[0]}" if widest else ""
    memory = psutil.virtual_memory().total / 2**30
    at = checkpoint()
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB memory, no GPU used" + (f", checkpoint {at}" if at else "")


def machine_of(name: str) -> str:
    """The machine that a section of RESULTS.md was measured on, as it says; this one where there is no such section."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    text = RESULTS.read_text() if RESULTS.is_file() else ""
    said = re.search(r"^Command: .* Machine: (.*)\.$", text.partition(begin)[2].partition(end)[0], re.M)
    return said[1] if said else machine()


def write_section(name: str, title: str, command: str, body: str, measured_on: str = "") -> None:
    """Replace (or add) one benchmark's section of RESULTS.md; the others stay.

    ``measured_on`` is the machine, by default this one.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n## {title}\n\nCommand: `{command}`. Machine: {measured_on or machine()}.\n\n{body.strip()}\n{end}\n"
    text = RESULTS.read_text() if RESULTS.is_file() else "# Benchmark results\n\nWritten by the scripts in this folder.\n\n"
    if begin in text:
        head, _, rest = text.partition(begin)
        after = rest.partition(end)[2].lstrip("\n")
        text = head + section + ("\n" + after if after else "")
    else:
        text = text.rstrip("\n") + "\n\n" + section
    RESULTS.write_text(text)


def mean_of(runs: Sequence[Mapping[str, Any]], name: str) -> float | str:
    """Mean over runs, or a dash where one of them did not record it."""
    return statistics.mean(one[name] for one in runs) if all(one.get(name) is not None for one in runs) else "-"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats with three decimals."""
    cells = [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in cells]) + "\n"
