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
from dvpo_ray.config.sections import CheckpointSection, EvaluationSection
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.errors import DataError, RewardError, RowsLostError
from dvpo_ray.evaluation.held_out import EvaluatedAnswer, Evaluation, Evaluator, compare, read_evaluations
from dvpo_ray.types import RowId, ScoredBatch, ScorerVersion
from jobs.held_out import figures, kept_by
from tests.support.fakes import FakeStages, scored_batch


class Letters:
    """A tokenizer of one letter."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "a" * len(ids)


class LosingStages(FakeStages):
    """Scores are lost with their node so many times."""

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.losses = losses

    def score(self, answers: Iterable[RowId], version: ScorerVersion | None = None) -> Any:
        """One batch of random rows under the names asked for."""
        names = list(answers)
        self.calls.append("score")
        yield replace(scored_batch([3] * len(names)), rows=tuple(reversed(names)))

    def fetch(self, handles: Iterable[ScoredBatch]) -> list[ScoredBatch]:
        found = list(handles)
        if self.calls.count("score") <= self.losses:
            raise RowsLostError("scorer-0: what it gave is lost")
        return found


def evaluator() -> Evaluator:
    prompts = [EncodedPrompt(f"p{i}", f"ask {i}", (5, 6, 7), f"ask {i}") for i in range(4)]
    return Evaluator(prompts, 1, "tests.support.fakes:early_letters", DvpoGae(), Letters(), 0)


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


def answers_of(golds: Sequence[float], groups: Sequence[str | None], cut: Sequence[bool]) -> list[EvaluatedAnswer]:
    return [
        EvaluatedAnswer(f"e/{i}", f"p{i}", "ask", "b", gold, 0.5, "length" if c else "stop", ["b"], [0.0, 1.0], [0.0], group)
        for i, (gold, group, c) in enumerate(zip(golds, groups, cut, strict=True))
    ]


def test_intervals_are_over_groups_where_prompts_have_one() -> None:
    """Two prompts on each of 20 subjects, with the same gold: 40 numbers say no more than 20 of them."""
    golds = [float(g) for g in np.random.default_rng(0).normal(size=20) for _ in range(2)]
    subjects = [f"s{i // 2}" for i in range(40)]
    grouped = Evaluation(0, answers_of(golds, subjects, [False] * 40)).summary()
    alone = Evaluation(0, answers_of(golds, [None] * 40, [False] * 40)).summary()
    half = Evaluation(0, answers_of(golds[::2], [None] * 20, [False] * 20)).summary()
    width, narrow, wanted = (found["gold_ci95_high"] - found["gold_ci95_low"] for found in (grouped, alone, half))
    assert width == pytest.approx(wanted, rel=0.1)
    assert narrow == pytest.approx(wanted / 2**0.5, rel=0.1), "as if there were 40 independent ones"


def test_shares_of_an_evaluation_have_intervals_at_0_and_1() -> None:
    """20 of 20 won and cut: by Wilson from 1 / (1 + 3.841459 / 20) = 0.838875 on; of ten pairs from 0.722467 on."""
    before = Evaluation(0, answers_of([0.0] * 20, [None] * 20, [False] * 20))
    after = Evaluation(4, answers_of([1.0] * 20, [None] * 20, [True] * 20))
    assert compare(before, after)["win_rate_ci95"] == pytest.approx([0.838875, 1.0], abs=1e-6)
    found = after.summary()
    assert (found["cut_share"], found["cut_share_ci95_low"]) == pytest.approx((1.0, 0.838875), abs=1e-6)
    assert (found["gold_ci95_low"], found["gold_ci95_high"]) == pytest.approx((0.838875, 1.0), abs=1e-6), "gold of 0 and 1"
    paired = [f"s{i // 2}" for i in range(20)]
    before, after = (Evaluation(i, answers_of([float(i)] * 20, paired, [False] * 20)) for i in range(2))
    assert compare(before, after)["win_rate_ci95"] == pytest.approx([0.722467, 1.0], abs=1e-6)


def test_a_result_says_how_many_answers_were_cut() -> None:
    before = Evaluation(0, answers_of([0.0] * 4, [None] * 4, [False, False, False, True]))
    after = Evaluation(4, answers_of([1.0] * 4, [None] * 4, [True, True, False, True]))
    found = figures({0: before, 4: after})
    assert (found["cut_share_before"], found["cut_share_after"]) == (0.25, 0.75)
    # Wilson's of 3 of 4: middle (0.75 + 0.480182) / 1.960365, half 1.959964 / 1.960365 * sqrt(0.046875 + 0.060023)
    assert found["cut_share_after_ci95"] == pytest.approx([0.300642, 0.954413], abs=1e-5)


def test_a_group_is_kept_in_the_records(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", Evaluation(0, answers_of([0.5, 0.1], ["sea", None], [False] * 2)))
    assert [answer.group for answer in read_evaluations(path, 0)[0].answers] == ["sea", None]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "group"}) + "\n" for row in rows))
    assert read_evaluations(path, 0)[0].kin == ["p0", "p1"], "of a run of an earlier version"


class Told:
    """A run that remembers what it said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("gold", "by", "advice"),
    [("a:b", "mean gold", False), (None, "mean last value of the frozen value model", True)],
)
def test_a_run_says_what_its_best_checkpoints_are_picked_by(gold: str | None, by: str, advice: bool) -> None:
    run: Any = Told()
    section = EvaluationSection(source="e", every=2, gold=gold)
    assert kept_by(CheckpointSection(keep_best=1), section, run) == {"kept_best_by": by}
    assert len(run.said) == 1 and by in run.said[0] and ("set evaluation.gold" in run.said[0]) == advice
    assert kept_by(CheckpointSection(), section, run) == {} and len(run.said) == 1


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
