"""Rewards of tokens: KL to the reference at each, and scores of whole answers at the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.config.algorithms import AlgorithmSettings, Ppo
from dvpo_ray.config.kl import KlSection
from dvpo_ray.config.rewards import RewardConfig
from dvpo_ray.learning.batching import to_padded
from dvpo_ray.maths.losses import kl_rewards
from dvpo_ray.maths.running import RunningMoments
from dvpo_ray.types import ScoredBatch

LEAST_STD = 1e-6


@dataclass(frozen=True)
class TokenRewards:
    """Rewards of tokens [B, T], the scores of whole answers in them [B], active tokens [B, T], metrics that describe the rewards,
    and the moments of all scores so far."""

    rewards_bt: Tensor
    scores_b: Tensor
    mask_bt: Tensor
    metrics: dict[str, float]
    moments: RunningMoments


def token_rewards(
    scored: ScoredBatch,
    advantage: AlgorithmSettings,
    kl: KlSection,
    beta: float,
    rewards: Mapping[str, RewardConfig],
    moments: RunningMoments,
) -> TokenRewards:
    """What each token of scored rows earns.

    The KL reward is measured under the engine's log-probs: those of the distribution that was sampled. ``rewards`` are the
    recipe's, whose scores the rows hold; weighted, and normalised by ``moments`` of earlier rows and these where the estimator
    asks for it, they join the reward of the last token.
    """
    lengths = scored.response_ids.lengths
    mu_bt, mask_bt = to_padded(scored.log_probs.flat, lengths)
    ref_bt, _ = to_padded(scored.ref_log_probs.flat, lengths)
    rewards_bt = kl_rewards(mu_bt, ref_bt, beta if kl.placement == "reward" else 0.0) * mask_bt
    log_ratio_bt = (mu_bt - ref_bt) * mask_bt
    metrics = {
        "kl/per_token": float(log_ratio_bt.sum() / mask_bt.sum()),
        "kl/per_answer": float(log_ratio_bt.sum(1).mean()),
        "kl/beta": beta,
    }
    scores_b = torch.zeros(len(scored))
    if rewards:
        scores_bc = scored.rewards.flat.reshape(len(scored), -1)
        weights_c = np.array([config.weight for config in rewards.values()], dtype=np.float32)
        whole_b = scores_bc @ weights_c
        metrics |= {f"reward/{name}": float(column.mean()) for name, column in zip(rewards, scores_bc.T, strict=True)}
        if isinstance(advantage, Ppo):
            whole_b, moments = _scaled(whole_b, advantage, moments)
        scores_b = torch.from_numpy(whole_b)
        rewards_bt[torch.arange(len(scored)), torch.from_numpy(lengths).long() - 1] += scores_b
    return TokenRewards(rewards_bt, scores_b, mask_bt, metrics, moments)


def running_state(moments: RunningMoments) -> dict[str, Tensor]:
    """The moments as a tensor of a checkpoint."""
    return {"rewards": torch.tensor([moments.count, moments.mean, moments.squares], dtype=torch.float64)}


def running_of(tensors: Mapping[str, Tensor]) -> RunningMoments:
    """The moments in a checkpoint, none in one of an earlier version."""
    if "rewards" not in tensors:
        return RunningMoments()
    count, mean, squares = tensors["rewards"].tolist()
    return RunningMoments(int(count), mean, squares)


def _scaled(scores_b: np.ndarray, settings: Ppo, moments: RunningMoments) -> tuple[np.ndarray, RunningMoments]:
    """Scores as PPO-max takes them: less the running mean, by the running deviation, clipped; and the new moments."""
    if settings.normalise_rewards:
        moments = moments.with_batch(scores_b)
        scores_b = (scores_b - moments.mean) / max(moments.std, LEAST_STD)
    if settings.clip_rewards:
        scores_b = scores_b.clip(-settings.clip_rewards, settings.clip_rewards)
    return scores_b.astype(np.float32), moments
