"""Answers that are in no pair: which they are, what their labels are, and what becomes of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.data import DeadLetters, EncodedAnswer, EncodedPair, LoadCounts, Preference, fingerprint, load_preferences
from dvpo_ray.data.messages import Message
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes import Answer, Prompted, labels_in, pairs_in, together
from tests.support.real import write_lines

HI = (Message("user", "Hi"),)
SCALE = (0.0, 4.0)


def answers(*scores: float, **known: Any) -> Prompted:
    return Prompted(HI, tuple(Answer(f"answer {i}", score) for i, score in enumerate(scores)), **known)


def labels(prompted: Prompted, scale: tuple[float, float] | None = None) -> dict[str, float]:
    return {text: label for text, label, _ in labels_in(prompted, scale)}


def test_labels_are_wins_less_losses_among_the_others_of_the_prompt() -> None:
    """Scores 1, 5, 3, 3, 9: the pair is (4, 0). Answer 1 beats 3 of 4 and loses to 1: (3 - 1) / 4. Answers 2 and 3 beat one,
    lose to two and tie with each other: (1 - 2) / 4."""
    found = answers(1, 5, 3, 3, 9)
    assert pairs_in(found) == [("answer 4", "answer 0")]
    assert labels(found) == {"answer 1": 0.5, "answer 2": -0.25, "answer 3": -0.25}


def test_ranks_need_no_scale() -> None:
    """Of four in a row the second beats two of three: 1/3; the third -1/3."""
    assert labels(answers(-1, -2, -3, -4)) == pytest.approx({"answer 1": 1 / 3, "answer 2": -1 / 3})


def test_ties_are_0() -> None:
    assert labels(answers(0, 0)) == {"answer 0": 0, "answer 1": 0}


def test_ratings_on_a_known_scale_are_their_own_labels() -> None:
    """2 s / 4 - 1: a 3 of 4 is 0.5, whether it is alone, in a tie or between others."""
    for found in (answers(3, rated=True), answers(3, 3, rated=True), answers(4, 3, 0, rated=True)):
        assert set(labels(found, SCALE).values()) == {0.5}
    assert labels(answers(1, rated=True, scale=(0.0, 1.0)), SCALE) == {"answer 0": 1}, "a row's own scale comes first"


def test_a_scale_of_ratings_says_nothing_of_verdicts() -> None:
    assert labels(answers(0, 0), SCALE) == {"answer 0": 0, "answer 1": 0}


@pytest.mark.parametrize(
    ("found", "reason", "detail"),
    [
        (answers(3, rated=True), Reason.NO_PARTNER, "nothing says on which scale its score 3 is: label_scale names"),
        (answers(5, rated=True, scale=SCALE), Reason.OUT_OF_SCALE, "the score 5 is not on the scale from 0 to 4"),
        (Prompted(HI, (Answer("a"),)), Reason.MISSING_FIELD, "no answers are compared"),
    ],
)
def test_answers_without_a_label(found: Prompted, reason: Reason, detail: str) -> None:
    with pytest.raises(BadRow) as caught:
        labels_in(found)
    assert caught.value.reason == reason and detail in caught.value.detail


def test_answers_that_are_good_or_bad_are_all_in_pairs() -> None:
    found = answers(1, 1, 0, rated=True, scale=(0.0, 1.0))
    assert len(pairs_in(found)) == 2 and labels(found) == {}


def test_answers_put_together_keep_a_scale_that_they_share() -> None:
    yes, number = answers(1, rated=True, scale=(0.0, 1.0)), answers(1, rated=True)
    assert together(yes, yes).scale == (0.0, 1.0) and together(yes, number).scale is None and together(yes, number).rated


def load(folder: Path, rows: list[Any], tokenizer: Any, **more: Any) -> tuple[list[Preference], LoadCounts]:
    source = str(write_lines(folder / "rows.jsonl", rows))
    limits: dict[str, Any] = {"max_prompt_tokens": 99, "max_answer_tokens": 20} | more
    with DeadLetters(folder / "dead.jsonl") as dead:
        return load_preferences(source, tokenizer, dead_letters=dead, **limits)


def rated(*given: tuple[str, str, Any], name: str = "helpfulness") -> list[dict[str, Any]]:
    return [{"prompt": prompt, "response": text, name: score} for prompt, text, score in given]


def test_what_is_found_is_counted_and_said(tmp_path: Path, tokenizer: Any) -> None:
    rows = rated(("a", "x", 3), ("a", "y", 1), ("b", "x", 2), ("b", "y", 2), ("c", "z", 4), ("d", "v" * 30, 4))
    found, counts = load(tmp_path, rows, tokenizer, label_scale=SCALE)
    assert [type(row) for row in found] == [EncodedPair, EncodedAnswer, EncodedAnswer, EncodedAnswer]
    assert [(row.row_id, row.label) for row in found if isinstance(row, EncodedAnswer)] == [
        ("rows.jsonl:3/answer0", 0),
        ("rows.jsonl:3/answer1", 0),
        ("rows.jsonl:5", 1),
    ]
    told = "1 pairs and 3 answers with labels of their own (in ties: 2, the only ones to their prompts: 1)"
    assert counts.said("pairs") == f"rated_answer: 5 rows, {told}; 1 rows left out (too_long: 1)"
    assert counts.rejected == {"too_long": 1} and (counts.read, counts.kept) == (6, 5)


def test_without_a_scale_only_lone_ratings_are_lost(tmp_path: Path, tokenizer: Any) -> None:
    rows = rated(("a", "x", 3), ("a", "y", 1), ("b", "x", 2), ("b", "y", 2), ("c", "z", 4))
    found, counts = load(tmp_path, rows, tokenizer)
    assert len(found) == 3 and counts.rejected == {"no_partner": 1}
    (letter,) = map(json.loads, (tmp_path / "dead.jsonl").read_text().splitlines())
    assert letter["line"] == 5 and "label_scale" in letter["detail"]


@pytest.mark.parametrize(("good", "bad"), [(True, False), ("good", "bad"), ("True", "False")])
def test_good_or_bad_is_a_scale_and_a_number_is_none(good: Any, bad: Any, tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": label} for i, label in enumerate([good, bad, good])]
    found, counts = load(tmp_path, rows, tokenizer)
    assert [row.label for row in found if isinstance(row, EncodedAnswer)] == [1, -1, 1] and not counts.rejected
    numbers = [row | {"label": int(row["label"] == good)} for row in rows]
    assert load(tmp_path, numbers, tokenizer)[1].rejected == {"no_partner": 3}
    assert fingerprint(load(tmp_path, numbers, tokenizer, label_scale=(0.0, 1.0))[0]) == fingerprint(found)


def test_an_answer_too_long_is_left_out_and_its_pair_is_not(tmp_path: Path, tokenizer: Any) -> None:
    given = [("x", 9), ("y" * 30, 5), ("z", 4), ("w", 1)]
    rows = [{"prompt": "p", "completions": [{"response": text, "score": score} for text, score in given]}]
    found, counts = load(tmp_path, rows, tokenizer)
    assert [row.row_id for row in found] == ["rows.jsonl:1", "rows.jsonl:1/answer1"]
    assert counts.notes == {"labelled answers that were left out, too_long": 1} and counts.kept == counts.read == 1
    assert counts.labelled == {"between the best and the worst": 1}


def test_the_fingerprint_sees_labels(tmp_path: Path, tokenizer: Any) -> None:
    prints = {fingerprint(load(tmp_path, rated(("a", "x", score)), tokenizer, label_scale=SCALE)[0]) for score in (1, 3)}
    assert len(prints) == 2


def test_trainings_on_pairs_say_what_they_leave_out(tmp_path: Path, tokenizer: Any) -> None:
    from dvpo_ray.config.sections import PairsSection
    from jobs.inputs import read_pairs, read_preferences

    rows = [row for i in range(8) for row in rated((f"p{i}", "x", 3), (f"p{i}", "y", 1))] + rated(("t", "x", 2), ("t", "y", 2))
    source = write_lines(tmp_path / "rows.jsonl", rows)
    limits: dict[str, Any] = {"max_prompt_tokens": 99, "max_answer_tokens": 20, "validation_share": 0.3}
    told: list[str] = []
    section = PairsSection(source=str(source), max_bad_share=0.2, **limits)
    train, held_out, _ = read_pairs(section, tokenizer, tmp_path / "run", told.append)
    assert told[0].endswith("8 pairs; 2 rows left out (tie: 2)") and len(train) + len(held_out) == 8
    section = section.model_copy(update={"max_bad_share": 0.0})
    more, others, _ = read_preferences(section, tokenizer, tmp_path / "run", told.append)
    assert told[1].endswith("8 pairs and 2 answers with labels of their own (in ties: 2)")
    assert [row for row in more if isinstance(row, EncodedPair)] == train
    assert [row for row in others if isinstance(row, EncodedPair)] == held_out
    assert len(more) + len(others) == 10 and not {row.prompt_key for row in more} & {row.prompt_key for row in others}
