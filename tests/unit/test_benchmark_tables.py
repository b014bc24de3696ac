"""Tables of benchmarks: what they read of runs, and what RESULTS.md and README say of the figures kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import common
from benchmarks.algorithm_tables import equal_kl_table, first_crossing, golds_of, quality_table, tokens_to_gold
from benchmarks.common import figures, machine_of, write_section
from benchmarks.prompt_alone import SUFFIXES, asked, body_of
from dvpo_ray.runs.folder import METRICS

ROOT = Path(__file__).resolve().parents[2]


def one(**changes: Any) -> dict[str, Any]:
    """The figures of a run."""
    found = {"gold_after": 0.7, "gold_after_ci95": [0.6, 0.8], "win_rate": 0.9, "kl_per_token": 0.2, "curve": []}
    return found | changes


def test_where_a_curve_first_comes_to_a_number() -> None:
    """From (0.04, 0.2) to (0.12, 0.6) the number 0.1 is three quarters of the way: 0.5. What comes later does not count."""
    curve = [[0.0, 0.1], [0.04, 0.2], [0.12, 0.6], [0.09, 0.9], [0.2, 1.0]]
    assert first_crossing(curve, 0.1) == pytest.approx(0.5)
    assert first_crossing(curve, 0.12) == pytest.approx(0.6)
    assert first_crossing(curve, 0.3) is None and first_crossing([], 0.1) is None
    assert first_crossing([[0.2, 1.0], [0.3, 2.0]], 0.1) is None, "it begins beyond"


def test_tokens_to_gold_are_read_from_held_out_evaluations(tmp_path: Path) -> None:
    """Steps of 100 tokens, evaluated before, after four and after eight: gold 0.2, 0.5, 0.7. On a line 0.6 is reached half-way
    from 400 to 800 tokens. The gold of training answers, 0.9 from the first step on, has no part in it."""
    steps = [{"step": i, "seconds/step": 1.0, "reward/gold": 0.9, "answer/total_tokens": 100.0} for i in range(8)]
    golds = [{"step": step, "eval/gold": gold} for step, gold in ((0, 0.2), (4, 0.5), (8, 0.7))]
    lines = [golds[0], *steps[:4], golds[1], *steps[4:], golds[2]]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert golds_of(tmp_path) == {0: 0.2, 4: 0.5, 8: 0.7}
    assert tokens_to_gold(steps, golds_of(tmp_path)) == pytest.approx(600.0)
    assert tokens_to_gold(steps, {0: 0.2, 8: 0.59}) is None


def test_what_runs_did_not_record_is_a_dash_and_what_they_never_reached_is_said() -> None:
    old, new = one(tokens_to_gold=9000.0), one(tokens_to_held_out_gold=9500.4, cut_share_after=0.25)
    never = one(tokens_to_held_out_gold=None, cut_share_after=0.75)
    lines = quality_table({"dvpo": {0: old}, "ppo": {0: new, 1: never}}).splitlines()
    assert lines[2].endswith("| 0.200 | - | - |"), "gold of training answers is no measure of held-out gold"
    assert lines[3].endswith("| 0.200 | 0.500 | 9500 / never |")


def test_the_table_at_equal_kl_is_that_of_the_figures_kept() -> None:
    """At 0.10 nats a token DVPO 0.533, PPO 0.519, GRPO 0.482, P3O 0.475, RLOO 0.412; in RESULTS.md and README as well."""
    known = figures("algorithms")
    kinds = ("dvpo", "ppo", "grpo", "rloo", "p3o", "dpo")
    found = {kind: {seed: known[f"algorithm-{kind}-seed-{seed}"] for seed in range(3)} for kind in kinds}
    text = equal_kl_table(found)
    rows = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [(row[0].strip("| `"), row[3]) for row in rows] == [
        ("dvpo", "0.533"),
        ("ppo", "0.519"),
        ("grpo", "0.482"),
        ("p3o", "0.475"),
        ("rloo", "0.412"),
        ("dpo", "-"),
    ]
    assert text in (ROOT / "benchmarks" / "RESULTS.md").read_text(), "python -m benchmarks.algorithms --there"
    readme = (ROOT / "README.md").read_text()
    for name, gold in (("DVPO", "0.533"), ("PPO, preset `max`", "0.519"), ("GRPO", "0.482"), ("RLOO", "0.412"), ("P3O", "0.475")):
        assert re.search(rf"^\| {re.escape(name)} \| [0-9.]+ \| [0-9.]+ \| {gold} \|", readme, re.M), name


def test_a_section_keeps_the_machine_it_was_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path / "RESULTS.md")
    write_section("a", "A", "python -m a", "body", measured_on="8 cores (X), checkpoint 1")
    write_section("b", "B", "python -m b", "other")
    assert machine_of("a") == "8 cores (X), checkpoint 1"
    assert machine_of("b") == machine_of("never measured") == common.machine()


def test_words_are_put_within_a_prompt_or_behind_it() -> None:
    assert asked("Write one sentence about tea.", (" in a cheerful way", "")) == "Write one sentence about tea in a cheerful way."
    assert asked("Describe tea in one sentence.", ("", " Be cheerful.")) == "Describe tea in one sentence. Be cheerful."
    assert asked("Describe tea in one sentence.", SUFFIXES["the prompt as it is"]) == "Describe tea in one sentence."


def test_results_say_what_was_measured_of_the_prompt_alone() -> None:
    known = figures("prompt_alone")
    assert set(known) <= set(SUFFIXES) and "the prompt as it is" in known
    assert (
        body_of({name: known[name] for name in SUFFIXES if name in known}).strip()
        in (ROOT / "benchmarks" / "RESULTS.md").read_text()
    )
