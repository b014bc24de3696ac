"""Answers with scores, ranks or labels, in one row or in several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dvpo_ray.data.messages import answer_of
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes.base import (
    ANSWERS,
    LISTS,
    RANKS,
    SCORES,
    SINGLE,
    Answer,
    Prompted,
    Row,
    are_texts,
    first_of,
    has,
    needed,
    number,
    scale_of,
    shape,
)
from dvpo_ray.data.shapes.prompts import has_prompt, read_prompt


def _rated_list(row: Row) -> str | None:
    """The column with a list of answers that say themselves how good they are."""
    for name in LISTS:
        value = row.get(name)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(item, Mapping) for item in value):
            continue
        if first_of(value[0], (*SCORES, *RANKS)) is not None:
            return name
    return None


@shape(
    "rated_answers",
    "a prompt, and a list (`completions`, `answers`, ...) of objects with an answer and its score or rank: UltraFeedback, Nectar",
    lambda r: _rated_list(r) is not None,
)
def _rated_answers(row: Row) -> Iterator[Prompted]:
    name = _rated_list(row) or LISTS[0]
    prompt = read_prompt(row)
    answers, rated = [], True
    for item in row[name]:
        score = first_of(item, SCORES)
        rank = first_of(item, RANKS)
        key = first_of(item, ANSWERS)
        if key is None:
            raise BadRow(Reason.MISSING_FIELD, f"'{name}' has an answer without any of {', '.join(map(repr, ANSWERS))}")
        if score is not None:
            grade = number(item[score], f"{name}.{score}")
        elif rank is not None:
            grade, rated = -number(item[rank], f"{name}.{rank}"), False
        else:
            raise BadRow(Reason.MISSING_FIELD, f"'{name}' has an answer without a score or rank")
        answers.append(Answer(answer_of(item[key], prompt, f"{name}.{key}"), grade))
    yield Prompted(prompt, tuple(answers), rated=rated)


def _scored_lists(row: Row) -> tuple[str, str] | None:
    """Columns of several answers and of their scores."""
    answers = next((name for name in LISTS if are_texts(row.get(name))), None)
    scores = next(
        (n for n in (*(f"{s}s" for s in SCORES), *SCORES, "ranks", *RANKS) if isinstance(row.get(n), list | tuple)), None
    )
    return (answers, scores) if answers and scores else None


@shape(
    "answers_and_scores",
    "a prompt, a list of texts (`answers`, `responses`, ...) and one of numbers (`scores`, `ratings`, `ranks`, ...)",
    lambda r: _scored_lists(r) is not None,
)
def _answers_and_scores(row: Row) -> Iterator[Prompted]:
    found = _scored_lists(row)
    if found is None:
        raise BadRow(Reason.MISSING_FIELD, "no list of answers with a list of scores")
    prompt, (texts, scores) = read_prompt(row), found
    if len(row[texts]) != len(row[scores]):
        raise BadRow(Reason.WRONG_TYPE, f"'{texts}' has {len(row[texts])} answers, '{scores}' has {len(row[scores])}")
    rated = scores not in ("ranks", *RANKS)
    sign = 1 if rated else -1
    pairs = zip(row[texts], row[scores], strict=True)
    answers = tuple(Answer(answer_of(t, prompt, texts), sign * number(s, scores)) for t, s in pairs)
    yield Prompted(prompt, answers, rated=rated)


@shape(
    "labelled_answer",
    "a prompt, `completion` (or `response`, ...) and `label`, one answer a row: KTO",
    lambda r: has(r, "label") and first_of(r, SINGLE) is not None and has_prompt(r),
    gathered=True,
)
def _labelled(row: Row) -> Iterator[Prompted]:
    prompt, label = read_prompt(row), row["label"]
    answer = Answer(answer_of(needed(row, *SINGLE), prompt, "completion"), number(label, "label"))
    yield Prompted(prompt, (answer,), rated=True, scale=scale_of(label))


@shape(
    "rated_answer",
    "a prompt, `response` (or `completion`, ...) and a number (`score`, `helpfulness`, ...), one answer a row: HelpSteer2",
    lambda r: first_of(r, SINGLE) is not None and has_prompt(r) and isinstance(r.get(first_of(r, SCORES) or ""), int | float),
    gathered=True,
)
def _rated(row: Row) -> Iterator[Prompted]:
    prompt, name = read_prompt(row), first_of(row, SCORES)
    score = needed(row, *SCORES)
    answer = Answer(answer_of(needed(row, *SINGLE), prompt, "response"), number(score, name or SCORES[0]))
    yield Prompted(prompt, (answer,), rated=True, scale=scale_of(score))
