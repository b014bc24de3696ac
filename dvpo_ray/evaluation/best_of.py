"""The best-of-n curve: what a policy's answers are worth when the best of n is taken, by gold or by the frozen value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvpo_ray.errors import ConfigError
from dvpo_ray.evaluation.held_out import EvaluatedAnswer, Evaluation
from dvpo_ray.maths.statistics import best_of_n, mean_ci95


def check_choosable(gold: str | None, value_model: str | None) -> None:
    """Raises ConfigError when a recipe names neither, before anything is generated."""
    if gold is None and value_model is None:
        raise ConfigError("nothing to choose answers by: give policy.evaluation.gold or policy.value_model")


def best_of_curve(evaluation: Evaluation, counts: Sequence[int], with_value: bool) -> list[dict[str, Any]]:
    """A row for each n: means over prompts with 95% intervals over groups of prompts.

    ``gold_by_gold`` is the best there is, ``gold_by_value`` what choosing by the value of the last token gives of it, and
    ``value_by_value`` that value: where it goes on rising while ``gold_by_value`` does not, the value model is being exploited.
    ``cut_share`` is that of all answers, cut at the limit, from which the best are taken.
    ``kl_at_most`` bounds the KL of the best of n against the policy, log n - (n - 1)/n nats an answer (Beirami et al. 2024).
    """
    prompts: dict[str, list[EvaluatedAnswer]] = {}
    kin: dict[str, str] = {}
    for answer, shared in zip(evaluation.answers, evaluation.kin, strict=True):
        prompts.setdefault(answer.prompt_id, []).append(answer)
        kin[answer.prompt_id] = shared
    groups = list(prompts.values())
    series: dict[str, tuple[list[list[float]], list[list[float]]]] = {}
    gold = [[answer.gold for answer in group if answer.gold is not None] for group in groups]
    value = [[answer.values[-1] for answer in group] for group in groups]
    if evaluation.golds is not None:
        series["gold_by_gold"] = gold, gold
    if with_value:
        series["value_by_value"] = value, value
    if with_value and evaluation.golds is not None:
        series["gold_by_value"] = value, gold
    cut_share = float(np.mean([answer.end_state == "length" for answer in evaluation.answers]))
    rows = []
    for n in counts:
        row: dict[str, Any] = {"n": n, "kl_at_most": math.log(n) - (n - 1) / n}
        for name, (scores, measured) in series.items():
            each = [best_of_n(by, what, n) for by, what in zip(scores, measured, strict=True)]
            row |= {name: float(np.mean(each)), f"{name}_ci95": mean_ci95(each, list(kin.values()))}
        rows.append(row | {"cut_share": cut_share})
    return rows
