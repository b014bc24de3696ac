"""How old the weights behind a token are, and what becomes of answers that are too old.

A token's age is the version being trained less the version that sampled it: 0 is on-policy.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.config.updates import OffPolicySection
from dvpo_ray.errors import StaleRowsError
from dvpo_ray.maths.losses import importance_weights
from dvpo_ray.types import Ragged, RowOutcome, ScoredBatch, outcomes


def ages(scored: ScoredBatch, version: int) -> Ragged:
    """Age of every token that the policy wrote, ragged, in steps.

    Raises:
        StaleRowsError: a token was sampled by weights newer than those trained, so the books of versions are wrong.
    """
    versions = scored.actions.versions
    found = Ragged(version - versions.flat, versions.lengths)
    if found.flat.size and found.flat.min() < 0:
        newest = int(versions.flat.max())
        raise StaleRowsError(f"an answer holds tokens of weights {newest}, but training is at {version}")
    return found


def keep_fresh(scored: ScoredBatch, version: int, config: OffPolicySection) -> tuple[ScoredBatch, tuple[RowOutcome, ...]]:
    """The rows to train on, and what became of those dropped because a token of theirs is over the limit."""
    limit = config.max_staleness
    oldest = np.array([row.max() for row in ages(scored, version).rows()])
    if config.over_limit != "drop" or oldest.max() <= limit:
        return scored, ()
    kept = [i for i, age in enumerate(oldest) if age <= limit]
    old = scored.take([i for i in range(len(scored)) if oldest[i] > limit])
    return scored.take(kept), outcomes(old, dropped=True)


def check_some_left(kept: int, dropped: int, step: int, config: OffPolicySection) -> None:
    """A step needs rows to train on.

    Raises:
        StaleRowsError: all rows of the step were dropped.
    """
    if not kept:
        raise StaleRowsError(
            f"all {dropped} answers of step {step} hold tokens more than {config.max_staleness} steps old: raise "
            "off_policy.max_staleness, or choose off_policy.over_limit = 'correct'"
        )


def token_weights(log_probs: Tensor, sampling_log_probs: Tensor, age: Tensor, config: OffPolicySection) -> Tensor | None:
    """Loss weight of each token [N], or None when all are on-policy.

    Args:
        log_probs: of the weights being trained, before the update [N].
        sampling_log_probs: of the weights that sampled [N].
        age: of each token, in steps [N].
        config: limit and correction.
    """
    if not bool((age > 0).any()):
        return None
    weights = torch.ones_like(log_probs)
    if config.correction != "none":
        corrected = importance_weights(log_probs, sampling_log_probs, config.max_weight, config.correction == "masked_is")
        weights = torch.where(age > 0, corrected, weights)
    if config.over_limit == "mask":
        weights = torch.where(age > config.max_staleness, torch.zeros_like(weights), weights)
    return weights


def staleness_metrics(scored: ScoredBatch, version: int, dropped: int) -> dict[str, float]:
    """Mean and largest age of a token in steps, the share of tokens that are not on-policy, and the rows dropped."""
    age = ages(scored, version).flat
    return {
        "staleness/mean": float(age.mean()),
        "staleness/max": float(age.max()),
        "staleness/share": float((age > 0).mean()),
        "staleness/dropped_rows": float(dropped),
    }
