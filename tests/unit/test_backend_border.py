"""What is of one training backend alone stays behind its border: only its folder, its settings and tests know its names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = re.compile(r"\bds_\w+|zero_stage|engine\.module")
FSDP = re.compile(r"\bDTensor\b|\bfully_shard\b|torch\.distributed\.fsdp")
TREES = ("actors", "dvpo_ray", "jobs", "scripts", "benchmarks")
SETTINGS = "dvpo_ray/config/backends.py"
# It builds one of DeepSpeed's engines by itself, to measure what the project adds to it; it names the setting alone.
MEASURES_DEEPSPEED = "benchmarks/planner.py"


def mentions(pattern: re.Pattern[str], home: str) -> list[str]:
    """Lines outside of a backend's home that speak of it."""
    found = []
    for path in sorted(path for tree in TREES for path in (ROOT / tree).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(home) or name in (SETTINGS, MEASURES_DEEPSPEED):
            continue
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        found += [f"{name}:{number}: {line.strip()}" for number, line in lines if pattern.search(line)]
    return found


def test_deepspeed_is_known_to_its_folder_alone() -> None:
    assert mentions(OWN, "actors/learner/deepspeed/") == []


def test_fsdp_is_known_to_its_folder_alone() -> None:
    assert mentions(FSDP, "actors/learner/fsdp/") == []


def test_the_pattern_finds_what_it_is_for() -> None:
    for line in ("getattr(p, 'ds_shape', p.shape)", "config.zero_stage > 0", "self.engine.module.model"):
        assert OWN.search(line), line
    assert not OWN.search("records_of(engine).module")
