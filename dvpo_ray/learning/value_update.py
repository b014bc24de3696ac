"""One step of value pretraining on preference pairs and labelled answers: targets and loss sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.config.targets import BtTarget, McTarget, RewardTarget, TargetConfig, TdTarget
from dvpo_ray.learning.batching import to_flat, to_padded
from dvpo_ray.maths.losses import bradley_terry_loss, value_loss
from dvpo_ray.maths.statistics import AGGREGATES, aggregate_values, concordance, win_indicators
from dvpo_ray.maths.targets import default_lambda, mc_targets, td_targets


def resolve_target(target: TargetConfig, mean_answer_tokens: float) -> TargetConfig:
    """The same settings with ``lam = "auto"`` replaced by a number chosen by answer length."""
    if isinstance(target, TdTarget | BtTarget) and target.lam == "auto":
        return target.model_copy(update={"lam": default_lambda(mean_answer_tokens)})
    return target


def targets(values: Tensor, lengths: np.ndarray, labels: Tensor, target: TargetConfig) -> Tensor:
    """Regression targets, flat [sum (T_i + 1)], from current values (flat, held fixed); none [0] when it is ``reward``."""
    if isinstance(target, RewardTarget):
        return values.new_empty(0)
    q_bt, mask_bt = to_padded(values.detach(), lengths + 1)
    if isinstance(target, McTarget):
        return to_flat(mc_targets(labels, mask_bt), mask_bt)
    assert target.lam != "auto", "resolve_target comes first"
    return to_flat(td_targets(q_bt, labels, mask_bt, float(target.lam)), mask_bt)


def loss(values: Tensor, goals: Tensor, lengths: np.ndarray, target: TargetConfig, in_pairs: bool = True) -> Tensor:
    """Loss summed over answers, a scalar.

    Args:
        values: flat [sum (T_i + 1)] with gradient; rows alternate chosen, rejected when they are in pairs.
        goals: flat targets.
        lengths: T_i.
        target: resolved settings.
        in_pairs: whether the answers are those of pairs. Others have no term of pairs: of ``reward`` there are none.
    """
    if isinstance(target, RewardTarget):
        assert in_pairs, "a reward model learns from pairs alone"
        last = values[torch.from_numpy(np.cumsum(lengths + 1) - 1).to(values.device)]
        # Each answer counts its pair's loss, so that the mean over answers is that over pairs.
        return 2 * bradley_terry_loss(last[0::2], last[1::2])
    q_bt, mask_bt = to_padded(values, lengths + 1)
    goal_bt, _ = to_padded(goals, lengths + 1)
    total = value_loss(q_bt, goal_bt, mask_bt)
    if isinstance(target, BtTarget) and in_pairs:
        response_mask = mask_bt.clone()
        response_mask[:, 0] = 0
        scores = (q_bt * response_mask).sum(1) / response_mask.sum(1)
        total = total + target.coefficient * bradley_terry_loss(scores[0::2], scores[1::2])
    return total


def pair_accuracy(chosen: Sequence[np.ndarray], rejected: Sequence[np.ndarray]) -> dict[str, float]:
    """Share of pairs whose chosen answer scores higher, by every aggregate of response values q_1..q_T; ties count half."""
    return {how: float(np.mean(pair_wins(chosen, rejected, how))) for how in AGGREGATES}


def label_concordance(values: Sequence[np.ndarray], labels: Sequence[float]) -> dict[str, float]:
    """Share of couples of answers with different labels, of whatever prompts, in which that with the higher label scores higher,
    by every aggregate of response values; ties count half. Empty without such a couple. Each array holds q_0..q_T."""
    if len(set(labels)) < 2:
        return {}
    return {how: concordance([aggregate_values(q[1:], how) for q in values], labels) for how in AGGREGATES}


def pair_wins(chosen: Sequence[np.ndarray], rejected: Sequence[np.ndarray], how: str) -> list[float]:
    """1 where the chosen answer scores higher, 0.5 for a tie, 0 otherwise. Each array holds q_0..q_T."""
    scores, others = ([aggregate_values(values[1:], how) for values in answers] for answers in (chosen, rejected))
    return win_indicators(scores, others)
