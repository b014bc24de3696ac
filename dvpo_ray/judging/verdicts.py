"""What a judge is asked, how its verdict is read, and what many verdicts say: pure functions."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dvpo_ray.errors import DataError
from dvpo_ray.judging.formats import Answered
from dvpo_ray.maths.statistics import share_ci95

Verdict = Literal["A", "B", "C"]
Outcome = Literal["win", "tie", "loss", "inconsistent", "undecided"]
MARK = re.compile(r"\[\[([A-Z])\]\]")
SCORES: dict[Outcome, float] = {"win": 1.0, "tie": 0.5, "inconsistent": 0.5, "loss": 0.0}
INSTRUCTIONS = (
    "You compare two answers to the same request. Decide which of them serves the user better: it does what was asked, is "
    "correct, goes as deep as the request needs and no further, and is clear. Neither the order in which the answers are shown "
    "nor their length counts for anything. Give your reasons in a few sentences. Then end with a line that holds your verdict "
    "alone: [[A]] if answer A is better, [[B]] if answer B is better, [[C]] if neither is."
)


@dataclass(frozen=True)
class Comparison:
    """Answers of models A and B to the same question, turn by turn.

    Example: ``Comparison("81", ("Write a poem.",), ("Roses ...",), ("Violets ...",))``.
    """

    key: str
    asked: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether there is nothing to judge: a tie, for which nobody is asked."""
        return self.a == self.b

    def orders(self) -> tuple[Request, Request]:
        """What the judge is asked: A's answers shown first, then B's."""
        return Request(self.key, self.asked, self.a, self.b), Request(self.key, self.asked, self.b, self.a)


@dataclass(frozen=True)
class Request:
    """One question to the judge; ``first`` is shown as answer A, ``second`` as answer B."""

    question: str
    asked: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]

    def messages(self) -> list[dict[str, str]]:
        """The request as a chat."""
        parts = []
        for turn, texts in enumerate(zip(self.asked, self.first, self.second, strict=True), 1):
            number = f" {turn}" if len(self.asked) > 1 else ""
            names = (f"Request{number}", f"Answer A{number}", f"Answer B{number}")
            parts += [f"<{name}>\n{text}\n</{name}>" for name, text in zip(names, texts, strict=True)]
        return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": "\n\n".join(parts)}]

    def identity(self, judge: Mapping[str, Any]) -> str:
        """sha256 of all that the verdict depends on: the texts in their order, the wording, and the judge with its settings."""
        return hashlib.sha256(json.dumps([self.messages(), dict(judge)], sort_keys=True).encode()).hexdigest()


def pair_up(a: Sequence[Answered], b: Sequence[Answered], asked: Mapping[str, tuple[str, ...]]) -> list[Comparison]:
    """Match the answers of two models by question; ``asked`` has questions that the answers do not repeat.

    Raises:
        DataError: a question is answered by one model alone, unknown, not the same everywhere, or has another number of answers
            than turns.
    """
    others = {one.key: one for one in b}
    alone = {one.key for one in a} ^ set(others)
    if alone:
        raise DataError(
            f"{len(alone)} questions are answered in one of the two files alone, for example '{min(alone)[:80]}': "
            "have both models answer the same questions"
        )
    comparisons = []
    for one in a:
        questions = _one_text(one.key, asked.get(one.key), one.asked, others[one.key].asked)
        for answers in (one.answers, others[one.key].answers):
            if len(answers) != len(questions):
                raise DataError(f"question '{one.key[:80]}': {len(answers)} answers to {len(questions)} turns; answer it anew")
        comparisons.append(Comparison(one.key, questions, one.answers, others[one.key].answers))
    return comparisons


def _one_text(key: str, *said: tuple[str, ...] | None) -> tuple[str, ...]:
    """The question's text, which the file of questions, A and B say alike where they say it."""
    texts = [text for text in said if text is not None]
    if not texts:
        raise DataError(f"question '{key[:80]}' stands in neither file: name the file of questions by --questions")
    for text in texts[1:]:
        if text != texts[0]:
            both = " and ".join(repr("\n".join(one)[:80]) for one in (texts[0], text))
            raise DataError(
                f"question '{key[:80]}' is not the same everywhere: {both}; have both models answer the same questions"
            )
    return texts[0]


def parse_verdict(reply: str) -> Verdict | None:
    """The verdict of a reply: [[A]], [[B]] or [[C]]; None when it has none, several that differ, or another mark."""
    marks = set(MARK.findall(reply))
    for verdict in ("A", "B", "C"):
        if marks == {verdict}:
            return verdict
    return None


def outcome(shown_first: Verdict | None, shown_second: Verdict | None) -> Outcome:
    """What two verdicts say of a model whose answer was shown first, then second: a win or loss only when both agree."""
    if shown_first is None or shown_second is None:
        return "undecided"
    swapped = {"A": "B", "B": "A", "C": "C"}[shown_second]
    if shown_first != swapped:
        return "inconsistent"
    return {"A": "win", "B": "loss", "C": "tie"}[shown_first]  # type: ignore[return-value]


def summarise(pairs: Sequence[tuple[Verdict | None, Verdict | None]], identical: int = 0) -> dict[str, Any]:
    """Win rate of model A over questions judged in both orders, and how far the judge can be trusted.

    Verdicts that change with the order count as ties; questions with a reply that could not be read count in no rate. Answers
    that are ``identical`` are ties that nobody was asked about. The interval is Wilson's, at 95%, over questions. Rates are None
    when there is nothing to take them over.
    """
    found = Counter(outcome(*pair) for pair in pairs)
    scores = [SCORES[one] for one in found.elements() if one in SCORES] + [0.5] * identical
    read = [verdict for pair in pairs for verdict in pair if verdict is not None]
    decided = len(pairs) - found["undecided"]
    return {
        "questions": len(pairs) + identical,
        "wins": found["win"],
        "losses": found["loss"],
        "ties": found["tie"] + identical,
        "identical": identical,
        "inconsistent": found["inconsistent"],
        "undecided": found["undecided"],
        "win_rate_a": float(np.mean(scores)) if scores else None,
        "win_rate_a_ci95": share_ci95(scores) if scores else None,
        "swap_consistency": 1 - found["inconsistent"] / decided if decided else None,
        # 0.5 for a judge without a preference for a place.
        "shown_first_preferred": (read.count("A") + 0.5 * read.count("C")) / len(read) if read else None,
    }
