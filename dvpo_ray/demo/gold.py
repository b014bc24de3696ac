"""The demo's gold function: how cheerful an answer is, by VADER.

VADER (Hutto & Gilbert 2014) is a rule-based lexicon scorer: transparent, deterministic and exact, so the demo can measure
what a learned value model is worth. It ranks the pairs when the data is made and judges held-out answers; the policy's
training never calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def lexicon() -> Mapping[str, float]:
    """VADER's valence of every word it knows, -4 to 4."""
    known: Mapping[str, float] = _analyzer().lexicon
    return known


def vader_compound(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """VADER compound score of each answer, in [-1, 1]. Prompts are not looked at."""
    assert len(prompts) == len(answers), f"{len(prompts)} prompts for {len(answers)} answers"
    return [float(_analyzer().polarity_scores(answer)["compound"]) for answer in answers]
