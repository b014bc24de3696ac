"""Numbers that give cause for doubt, and the rows kept of updates that were withheld."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.updates import HealthSection
from dvpo_ray.errors import DataError, UnhealthyRunError
from dvpo_ray.loop.dumps import read_dump, write_dump
from dvpo_ray.loop.health import HealthMonitor, alarms
from dvpo_ray.types import Ragged
from jobs.replay import replay
from tests.support.fakes import scored_batch

GOOD = {"gap/abs_log_prob": 0.05, "kl/per_token": 0.3, "policy/entropy": 2.0, "answer/cut_share": 1.0}


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("gap/abs_log_prob", 0.3, "0.300 nats from the learner"),
        ("kl/per_token", 2.5, "2.50 nats a token from the reference"),
        ("policy/entropy", 0.001, "says always the same"),
        ("answer/cut_share", 0.9, "90% of answers were cut"),
    ],
)
def test_each_number_has_its_alarm(metric: str, value: float, words: str) -> None:
    config = HealthSection(max_cut_share=0.8)
    good = GOOD | {"answer/cut_share": 0.5}
    assert alarms(good, config) == {}
    (text,) = alarms(good | {metric: value}, config).values()
    assert words in text


def test_a_run_ends_when_the_same_alarm_stays_and_only_then() -> None:
    watch = HealthMonitor(HealthSection(stop_after=3))
    bad, other = GOOD | {"kl/per_token": 9.0}, GOOD | {"policy/entropy": 0.0}
    for metrics in (bad, bad, GOOD, bad, bad, other):
        watch.check(metrics)
    watch.check(bad)
    watch.check(bad)
    with pytest.raises(UnhealthyRunError, match=r"for 3 steps in a row the policy was 9\.00 nats"):
        watch.check(bad)


def test_a_dump_is_read_back_and_anything_else_refused(tmp_path: Path) -> None:
    scored = scored_batch([3, 5], seed=1)
    found, step, beta = read_dump(write_dump(tmp_path / "d" / "x.npz", scored, 6, 0.1))
    assert (step, beta, found.rows, found.end_states) == (6, 0.1, scored.rows, scored.end_states)
    assert np.array_equal(found.values.flat, scored.values.flat)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    for path in (tmp_path / "bad.npz", tmp_path / "none.npz"):
        with pytest.raises(DataError, match="is no dump of rows"):
            read_dump(path)


def test_replay_names_the_row_that_is_not_finite(tiny_model: Path, tmp_path: Path) -> None:
    scored = scored_batch([3, 5, 4], seed=1)
    log_probs = scored.ref_log_probs.flat.copy()
    log_probs[4] = np.nan
    scored = replace(scored, ref_log_probs=Ragged(log_probs, scored.ref_log_probs.lengths))
    dump = write_dump(tmp_path / "x.npz", scored, 0, 0.1)
    tree = {
        "model": {"path": str(tiny_model), "attention": "eager"},
        "policy": {
            "value_model": "g",
            "data": {"source": "x"},
            "learner": {"dtype": "float32"},
            "advantage": {"whitening": "none"},
        },
    }
    found = replay(dump, build(PolicyRecipe, tree))
    assert [row["row"] for row in found["bad"]] == ["0/0:r1/0"]
    assert found["bad"][0]["not_finite"] == "ref_log_probs, advantages, loss, gradient"
    assert all(np.isfinite(row["gradient_norm"]) for row in found["all"] if row["row"] != "0/0:r1/0")
