"""Held-out evaluations: rows lost with a node are asked for again; what a run wrote it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvpo_ray.config.algorithms import DvpoGae
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.errors import DataError, RewardError, RowsLostError
from dvpo_ray.evaluation import EvaluatedAnswer, Evaluation, Evaluator, read_evaluations
from dvpo_ray.rows import ScoredBatch
from tests.fakes import FakeStages, scored_batch


class Letters:
    """A tokenizer of one letter."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "a" * len(ids)


class LosingStages(FakeStages):
    """Scores are lost with their node so many times."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses

    def score(self, answers: Iterable[str]) -> Any:
        """One batch of random rows under the names asked for."""
        names = list(answers)
        self.calls.append("score")
        yield replace(scored_batch([3] * len(names)), row_ids=tuple(reversed(names)))

    def fetch(self, handles: Iterable[ScoredBatch]) -> list[ScoredBatch]:
        found = list(handles)
        if self.calls.count("score") <= self.losses:
            raise RowsLostError("scorer-0: what it gave is lost")
        return found


def evaluator() -> Evaluator:
    prompts = [EncodedPrompt(f"p{i}", f"ask {i}", (5, 6, 7), f"ask {i}") for i in range(4)]
    return Evaluator(prompts, 1, "tests.fakes:early_letters", DvpoGae(), Letters(), 0)


@pytest.mark.parametrize(
    ("scores", "what"),
    [
        (lambda n: [1.0] * (n - 1), "returned 3 numbers for 4 answers"),
        (lambda n: [0.5, float("nan"), 1, 1], "returned nan for answer 1 of 4; it must be finite"),
        (lambda n: None, "returned no list of numbers: None"),
    ],
)
def test_what_a_gold_function_returns_is_checked(scores: Callable[[int], Any], what: str) -> None:
    stages, judge = LosingStages(0), evaluator()
    judge._gold = lambda prompts, answers: scores(len(answers))
    with pytest.raises(RewardError, match=f"evaluation.gold {re.escape(what)}"):
        judge.run(0, stages, stages)


def test_gold_of_numpy_and_of_truth_values_can_be_written_and_read_again(tmp_path: Path) -> None:
    stages, judge = LosingStages(0), evaluator()
    judge._gold = lambda prompts, answers: [np.float32(0.5), np.bool_(True), True, 0]
    path = tmp_path / "evaluations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in judge.run(0, stages, stages).rows()))
    assert judge.known(path, 0)[0].golds == [0.5, 1.0, 1.0, 0.0]


def test_answers_to_other_prompts_are_not_gone_on_with(tmp_path: Path) -> None:
    stages, path = LosingStages(0), tmp_path / "evaluations.jsonl"
    rows = evaluator().run(0, stages, stages).rows()
    rows[2]["prompt"] = "ask another"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"prompts answered after 0 steps are not those of evaluation\.source now"):
        evaluator().known(path, 0)


@pytest.mark.parametrize("kept", [[0, 1, 2], [1, 2, 3]], ids=["one more now", "one less then"])
def test_evaluations_of_another_number_of_prompts_are_not_gone_on_with(tmp_path: Path, kept: list[int]) -> None:
    stages, path = LosingStages(0), tmp_path / "evaluations.jsonl"
    rows = [evaluator().run(step, stages, stages).rows() for step in (0, 4)]
    path.write_text("".join(json.dumps(rows_of[i]) + "\n" for rows_of in rows for i in kept))
    with pytest.raises(DataError, match=r"are not those of evaluation\.source now"):
        evaluator().known(path, 4)


def test_an_evaluation_that_was_cut_short_is_taken_back(tmp_path: Path) -> None:
    stages, path = LosingStages(0), tmp_path / "evaluations.jsonl"
    rows = [row for step in (0, 4) for row in evaluator().run(step, stages, stages).rows()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert set(evaluator().known(path, 8)) == {0}
    assert {json.loads(line)["step"] for line in path.read_text().splitlines()} == {0}
    assert set(evaluator().known(path, 8)) == {0}


def test_rows_lost_with_a_node_are_asked_for_again() -> None:
    stages = LosingStages(2)
    found = evaluator().run(4, stages, stages)
    assert stages.calls.count("generate") == 3
    assert [answer.prompt_id for answer in found.answers] == ["p0", "p1", "p2", "p3"]
    assert found.golds == [1.0] * 4


def test_rows_lost_again_and_again_end_the_evaluation() -> None:
    stages = LosingStages(99)
    with pytest.raises(RowsLostError):
        evaluator().run(4, stages, stages)
    assert stages.calls.count("generate") == 3


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
