"""Held-out evaluations as a run writes and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.errors import DataError
from dvpo_ray.evaluation import EvaluatedAnswer, Evaluation, read_evaluations


def evaluated(step: int, gold: float | None) -> Evaluation:
    answer = EvaluatedAnswer("eval/a/0", "a", "say \ufffd", "b", gold, -1.5e-6, "length", ["b", ""], [0.1, 0.2, 1], [0.1, -0.1])
    return Evaluation(step, [answer])


def written(path: Path, *evaluations: Evaluation, **changes: Any) -> Path:
    rows = [row | changes for evaluation in evaluations for row in evaluation.rows()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_that_goes_on_reads_what_it_wrote(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", evaluated(0, None), evaluated(4, 0.5), evaluated(8, 0.75))
    assert read_evaluations(path, 4) == {0: evaluated(0, None), 4: evaluated(4, 0.5)}, "later ones will be made again"
    assert read_evaluations(tmp_path / "none", 4) == {}


@pytest.mark.parametrize(("change", "field"), [({"kl": "0.5"}, "kl"), ({"values": [None]}, "values.0"), ({"step": "0"}, "step")])
def test_a_field_of_another_kind_is_named(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"e\.jsonl, row 1: {field}: "):
        read_evaluations(written(tmp_path / "e.jsonl", evaluated(0, 1.0), **change), 4)
