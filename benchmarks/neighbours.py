"""A training step beside other programs: how OpenMP waits, how nice the process is, and how many threads it has.

``python -m benchmarks.neighbours`` writes one section of RESULTS.md. A neighbour is a process that computes without a pause, at
niceness 0. Ray starts its workers at niceness 15 unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from benchmarks.common import ROOT, figures, keep_figures, table, write_section

SECTION = "neighbours"
ROWS, TOKENS, STEPS = 4, 32, 3
LOADS = (0, 1, 2)
PATIENCE_S = 60
# Name, environment, niceness, threads (0: all cores).
SETTINGS: tuple[tuple[str, dict[str, str], int, int], ...] = (
    ("spinning, nice 15", {"OMP_WAIT_POLICY": "active"}, 15, 0),
    ("default wait, nice 15", {}, 15, 0),
    ("passive wait, nice 15", {"OMP_WAIT_POLICY": "passive"}, 15, 0),
    ("default wait, nice 0", {}, 0, 0),
    ("passive wait, nice 0", {"OMP_WAIT_POLICY": "passive"}, 0, 0),
    ("GOMP_SPINCOUNT=10000, nice 0", {"GOMP_SPINCOUNT": "10000"}, 0, 0),
    ("GOMP_SPINCOUNT=1000, nice 0", {"GOMP_SPINCOUNT": "1000"}, 0, 0),
    ("one thread, nice 15", {}, 15, 1),
    ("one thread, nice 0", {}, 0, 1),
)


def measure(threads: int) -> list[float]:
    """Seconds of steps (forward, backward, AdamW) of the demo's value model in float32, in this process."""
    import time

    import torch

    from dvpo_ray.models.packaged import resolve_model
    from dvpo_ray.models.token_reader import ValueReader
    from dvpo_ray.models.value_model import new_value_model

    torch.set_num_threads(threads or os.cpu_count() or 1)
    reader = ValueReader(new_value_model(resolve_model("smollm2-135m-instruct"), "eager", torch.float32).eval())
    optimizer = torch.optim.AdamW(reader.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(100, 40000, (ROWS, TOKENS))
    positions = torch.arange(ROWS * TOKENS)
    seconds = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        reader(ids, torch.ones_like(ids), positions).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many busy processes for the length of the block."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def in_a_process(environment: dict[str, str], niceness: int, threads: int) -> list[float]:
    """``measure`` in a process of its own, with the allocator's settings of learners (docs/performance.md); nothing when that
    took longer than ``PATIENCE_S``."""
    allocator = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
    given = os.environ | allocator | environment | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.neighbours", "--measure", str(threads)]
    try:
        done = subprocess.run(
            command,
            env=given,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
            preexec_fn=lambda: os.nice(niceness),
        )
    except subprocess.TimeoutExpired:
        return []
    return list(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure what is not on file, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", type=int)
    parser.add_argument("--again", action="store_true", help="Measure what is on file as well.")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return
    known: dict[str, dict[str, Any]] = {} if arguments.again else figures(SECTION)
    for name, environment, niceness, threads in SETTINGS:
        for load in LOADS:
            key = f"{name}, {load} busy"
            if key not in known:
                with neighbours(load):
                    known[key] = {"seconds": in_a_process(environment, niceness, threads)}
                keep_figures(SECTION, {key: known[key]})
                print(key, known[key], flush=True)
    rows = [[name, *(_shown(known[f"{name}, {load} busy"]["seconds"]) for load in LOADS)] for name, *_ in SETTINGS]
    body = (
        f"Seconds of a training step of the demo's value model in float32 ({ROWS} rows of {TOKENS} tokens, median of {STEPS}), "
        "beside processes that compute without a pause.\n\n"
        + table(["setting", *(f"{load} busy" for load in LOADS)], rows)
        + "\nRay's default is niceness 15, torch's the default wait of its OpenMP, with a thread a core."
    )
    write_section(SECTION, "Beside busy neighbours", "python -m benchmarks.neighbours", body)


def _shown(seconds: list[float]) -> float | str:
    return median(seconds) if seconds else f"over {PATIENCE_S / (1 + STEPS):.0f}"


if __name__ == "__main__":
    main()
