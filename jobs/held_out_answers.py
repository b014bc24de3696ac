"""What a value model makes of held-out pairs and labelled answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from actors.learner.gang import Gang
from dvpo_ray.config.targets import RewardTarget, TargetConfig
from dvpo_ray.data import Preference
from dvpo_ray.learning.pairs import unit
from dvpo_ray.learning.value_update import label_concordance, pair_accuracy, pair_wins
from dvpo_ray.maths.statistics import share_ci95


def measure(gang: Gang, rows: Sequence[Preference], target: TargetConfig) -> dict[str, Any]:
    """Pair accuracy by aggregate, with 95% intervals for mean and last value, how values of answers in no pair agree with their
    labels, and the calibration of what was trained: token values, or last values. Without pairs there is no accuracy."""
    units = [unit(row) for row in rows]
    answers = [answer for one in units for answer in one]
    found: dict[int, np.ndarray] = {}
    for part in gang.call("values", answers, doing="reading values of held-out answers"):
        found |= part
    values = [found[i] for i in range(len(answers))]
    bounds = np.cumsum([0, *map(len, units)])
    by_unit = [values[first:end] for first, end in pairwise(bounds)]
    in_pairs = [i for i, one in enumerate(by_unit) if len(one) == 2]
    alone = [i for i, one in enumerate(by_unit) if len(one) == 1]
    first = -1 if isinstance(target, RewardTarget) else 1
    trained = np.concatenate([q[first:] for q in values])
    return {
        **_of_pairs([by_unit[i] for i in in_pairs], [rows[i].kin for i in in_pairs]),
        "pairs": len(in_pairs),
        "answers": len(alone),
        "label_concordance": label_concordance([by_unit[i][0] for i in alone], [units[i][0].label for i in alone]),
        "value_mean": float(trained.mean()),
        "value_std": float(trained.std()),
    }


def _of_pairs(values: Sequence[Sequence[np.ndarray]], keys: Sequence[str]) -> dict[str, Any]:
    """Accuracies of pairs, given the values of both answers of each, and what a pair has in common with others."""
    if not values:
        return {"by_aggregate": {}}
    chosen, rejected = ([both[side] for both in values] for side in (0, 1))
    by_aggregate = pair_accuracy(chosen, rejected)
    return {
        "mean": by_aggregate["mean"],
        "last": by_aggregate["last"],
        "mean_ci95": share_ci95(pair_wins(chosen, rejected, "mean"), keys),
        "last_ci95": share_ci95(pair_wins(chosen, rejected, "last"), keys),
        "by_aggregate": by_aggregate,
    }
