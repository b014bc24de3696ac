"""What a row's prompts and answers are used for: pairs, labelled answers, demonstrations, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes.base import Answer, Prompted, Row, Scale, Shape, tools_of
from dvpo_ray.data.shapes.prompts import has_prompt, read_prompt


class Why(StrEnum):
    """Why an answer is in no pair."""

    ALONE = "the only ones to their prompts"
    TIE = "in ties"
    BETWEEN = "between the best and the worst"


class Labelled(NamedTuple):
    """An answer with a label of its own in [-1, 1], and why it is in no pair."""

    text: str
    label: float
    why: Why


def prompts_in(row: Row, shape: Shape) -> list[Prompted]:
    """The prompts of a row, whatever its answers are like where the prompt stands beside them.

    Raises:
        BadRow: with the reason.
    """
    if not shape.own_prompts and has_prompt(row):
        return [Prompted(read_prompt(row), tools=tools_of(row))]
    return shape.rows(row)


def together(first: Prompted, second: Prompted) -> Prompted:
    """All answers to a prompt that rows give one by one; they have a scale if both have the same."""
    return replace(
        first,
        answers=first.answers + second.answers,
        rated=first.rated and second.rated,
        scale=first.scale if first.scale == second.scale else None,
    )


def pairs_in(prompted: Prompted) -> list[tuple[str, str]]:
    """Better and worse answers to one prompt: where answers are only good or bad, every one of them in a pair, else the best with
    the worst.

    Raises:
        BadRow: nothing is compared, or nothing differs.
    """
    scored, scores = _scored(prompted)
    found = _pairs_of(scores)
    if not found and len(scored) == 1:
        raise BadRow(Reason.NO_PARTNER, "the only answer to its prompt: there is none to compare it with")
    if not found:
        raise BadRow(Reason.TIE, f"all {len(scored)} answers have the score {scores[0]:g}")
    texts = [(scored[good].text, scored[bad].text) for good, bad in found]
    different = [pair for pair in texts if pair[0].strip() != pair[1].strip()]
    if not different:
        raise BadRow(Reason.EQUAL_ANSWERS, "the better and the worse answer are the same")
    return different


def has_pairs(prompted: Prompted) -> bool:
    """Whether answers with different scores are compared.

    Raises:
        BadRow: no answer has a score.
    """
    return bool(_pairs_of(_scored(prompted)[1]))


def labels_in(prompted: Prompted, scale: Scale | None = None) -> list[Labelled]:
    """The answers that are in none of ``pairs_in``, each with a label in [-1, 1].

    It says where the score of a rated answer lies on its scale, from -1 (lowest) to 1 (highest). Where no scale is known, it is
    the share of the prompt's other answers that it is better than, less the share that it is worse than: 0 in a tie.

    Args:
        prompted: a prompt with answers.
        scale: lowest and highest rating, where the row itself does not show it.

    Raises:
        BadRow: no answer has a score, one is outside of the scale, or the only one has no known scale.
    """
    scored, scores = _scored(prompted)
    known = prompted.scale or (scale if prompted.rated else None)
    found = _pairs_of(scores)
    paired = {i for pair in found for i in pair}
    why = Why.BETWEEN if found else Why.ALONE if len(scored) == 1 else Why.TIE
    return [Labelled(scored[i].text, _label(i, scores, known), why) for i in range(len(scored)) if i not in paired]


def _label(i: int, scores: Sequence[float], scale: Scale | None) -> float:
    if scale is not None:
        low, high = scale
        if not low <= scores[i] <= high:
            raise BadRow(Reason.OUT_OF_SCALE, f"the score {scores[i]:g} is not on the scale from {low:g} to {high:g}")
        return 2 * (scores[i] - low) / (high - low) - 1
    others = [*scores[:i], *scores[i + 1 :]]
    if not others:
        raise BadRow(
            Reason.NO_PARTNER,
            f"the only answer to its prompt, and nothing says on which scale its score {scores[i]:g} is: label_scale names that "
            "of ratings",
        )
    return sum((scores[i] > other) - (scores[i] < other) for other in others) / len(others)


def _scored(prompted: Prompted) -> tuple[list[Answer], list[float]]:
    """The answers that are compared, and their scores."""
    scored = [answer for answer in prompted.answers if answer.score is not None]
    if not scored:
        raise BadRow(Reason.MISSING_FIELD, "no answers are compared: 'chosen' and 'rejected' are missing, or scores")
    return scored, [answer.score for answer in scored if answer.score is not None]


def _pairs_of(scores: Sequence[float]) -> list[tuple[int, int]]:
    """Which answers make pairs, by their scores: (better, worse); none when all have the same."""
    best, worst = max(scores), min(scores)
    if best == worst:
        return []
    good = [i for i, score in enumerate(scores) if score == best]
    bad = [i for i, score in enumerate(scores) if score == worst]
    count = max(len(good), len(bad)) if len(good) + len(bad) == len(scores) else 1
    return [(good[i % len(good)], bad[i % len(bad)]) for i in range(count)]


def best_answer(prompted: Prompted) -> str:
    """The answer that is an example of a good one.

    Raises:
        BadRow: there is none, or all are bad.
    """
    if not prompted.answers:
        raise BadRow(Reason.MISSING_FIELD, "neither 'completion' nor 'chosen'")
    best = max(prompted.answers, key=lambda answer: answer.score or 0.0)
    if len(prompted.answers) > 1 and best.score == min(answer.score or 0.0 for answer in prompted.answers):
        raise BadRow(Reason.TIE, f"all {len(prompted.answers)} answers have the score {best.score:g}")
    if len(prompted.answers) == 1 and best.score is not None and best.score <= 0:
        raise BadRow(Reason.LOW_SCORE, f"its only answer has the score {best.score:g}: it is no example of a good one")
    return best.text
