"""What a row's prompts and answers are used for: pairs, demonstrations, prompts."""

from __future__ import annotations

from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes.base import Prompted, Row, Shape, tools_of
from dvpo_ray.data.shapes.prompts import has_prompt, read_prompt


def prompts_in(row: Row, shape: Shape) -> list[Prompted]:
    """The prompts of a row, whatever its answers are like where the prompt stands beside them.

    Raises:
        BadRow: with the reason.
    """
    if not shape.own_prompts and has_prompt(row):
        return [Prompted(read_prompt(row), tools=tools_of(row))]
    return shape.rows(row)


def pairs_in(prompted: Prompted) -> list[tuple[str, str]]:
    """Better and worse answers to one prompt: where answers are only good or bad, every one of them in a pair, else the best with
    the worst.

    Raises:
        BadRow: nothing is compared, or nothing differs.
    """
    scored = [(answer.text, answer.score) for answer in prompted.answers if answer.score is not None]
    if not scored:
        raise BadRow(Reason.MISSING_FIELD, "no answers are compared: 'chosen' and 'rejected' are missing, or scores")
    if len(scored) == 1:
        raise BadRow(Reason.NO_PARTNER, "the only answer to its prompt: there is none to compare it with")
    scores = [score for _, score in scored]
    best, worst = max(scores), min(scores)
    if best == worst:
        raise BadRow(Reason.TIE, f"all {len(scored)} answers have the score {best:g}")
    good = [text for text, score in scored if score == best]
    bad = [text for text, score in scored if score == worst]
    count = max(len(good), len(bad)) if len(good) + len(bad) == len(scored) else 1
    found = [(good[i % len(good)], bad[i % len(bad)]) for i in range(count)]
    different = [pair for pair in found if pair[0].strip() != pair[1].strip()]
    if not different:
        raise BadRow(Reason.EQUAL_ANSWERS, "the better and the worse answer are the same")
    return different


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
