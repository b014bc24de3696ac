"""What tokens earn: KL to the reference at each, rewards of single tokens, and those of whole answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.algorithms import Signals, make_algorithm
from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.config.kl import KlSection
from dvpo_ray.config.rewards import RewardSettings
from dvpo_ray.learning.batching import to_padded
from dvpo_ray.maths.losses import kl_rewards
from dvpo_ray.maths.running import RunningMoments
from dvpo_ray.types import Ragged, ScoredBatch


@dataclass(frozen=True)
class TokenRewards:
    """KL rewards [B, T], weighted rewards of single tokens [B, T] and of whole answers [B], active tokens [B, T], metrics that
    describe the rewards, and the moments of all rewards of whole answers so far."""

    kl_bt: Tensor
    reward_bt: Tensor
    terminal_b: Tensor
    mask_bt: Tensor
    metrics: dict[str, float]
    moments: RunningMoments

    def signals(self, q_bt: Tensor, group_b: Tensor) -> Signals:
        """What algorithms read, with frozen values or a critic's [B, T+1]."""
        return Signals(q_bt, self.kl_bt, self.reward_bt, self.terminal_b, self.mask_bt, group_b)

    @property
    def rewards_bt(self) -> Tensor:
        """All rewards of each token [B, T]."""
        return self.signals(self.mask_bt, self.terminal_b).k_bt


def token_rewards(
    scored: ScoredBatch,
    advantage: AlgorithmSettings,
    kl: KlSection,
    beta: float,
    rewards: Mapping[str, RewardSettings],
    moments: RunningMoments,
) -> TokenRewards:
    """What each token earns that the policy wrote in scored rows.

    The KL reward is measured under the engine's log-probs: those of the distribution that was sampled. ``rewards`` are the
    recipe's, whose numbers the rows hold in channels; a channel that the recipe does not name (an environment's) has weight 1.
    Those of whole answers are weighted, summed, and scaled by the algorithm with the help of ``moments`` of earlier rows.
    """
    actions = scored.actions
    mu_bt, mask_bt = to_padded(actions.log_probs.flat, actions.lengths)
    ref_bt, _ = to_padded(actions.ref_log_probs.flat, actions.lengths)
    kl_bt = kl_rewards(mu_bt, ref_bt, beta if kl.placement == "reward" else 0.0) * mask_bt
    log_ratio_bt = (mu_bt - ref_bt) * mask_bt
    metrics = {
        "kl/per_token": float(log_ratio_bt.sum() / mask_bt.sum()),
        "kl/per_answer": float(log_ratio_bt.sum(1).mean()),
        "kl/beta": beta,
    }
    weights = {name: rewards[name].weight if name in rewards else 1.0 for name in actions.rewards}
    reward_bt, terminal_b = torch.zeros_like(kl_bt), torch.zeros(len(scored))
    for name, channel in actions.rewards.items():
        metrics |= _described(name, channel)
        reward_bt += weights[name] * _of_tokens(channel, actions.lengths)
    if weights:
        whole_bc = np.stack([_of_answers(channel) for channel in actions.rewards.values()], axis=1)
        whole_b = whole_bc @ np.array(list(weights.values()), dtype=np.float32)
        whole_b, moments = make_algorithm(advantage).scaled(whole_b, moments)
        terminal_b = torch.from_numpy(whole_b)
    return TokenRewards(kl_bt, reward_bt, terminal_b, mask_bt, metrics, moments)


def _of_answers(channel: Ragged) -> np.ndarray:
    """The numbers of whole answers in a channel, 0 where there is none, float32 [B]."""
    return np.array([row[0] if row.size == 1 else 0.0 for row in channel.rows()], dtype=np.float32)


def _of_tokens(channel: Ragged, lengths: np.ndarray) -> Tensor:
    """The numbers of single tokens in a channel, 0 where there are none [B, T]."""
    rows = [row if row.size > 1 else np.zeros(length) for row, length in zip(channel.rows(), lengths, strict=True)]
    return to_padded(Ragged.of(rows, np.float32).flat, lengths)[0]


def _described(name: str, channel: Ragged) -> dict[str, float]:
    """The mean over rows, of what their tokens were given in all, and the share of rows where the reward abstained."""
    sums = [row.sum() for row in channel.rows() if row.size]
    abstained = 1.0 - len(sums) / len(channel)
    found = {f"reward/{name}": float(np.mean(sums)) if sums else 0.0}
    return found | ({f"reward/{name}_abstained": abstained} if abstained else {})


def running_state(moments: RunningMoments) -> dict[str, Tensor]:
    """The moments as a tensor of a checkpoint."""
    return {"rewards": torch.tensor([moments.count, moments.mean, moments.squares], dtype=torch.float64)}


def running_of(tensors: Mapping[str, Tensor]) -> RunningMoments:
    """The moments in a checkpoint, none in one of an earlier version."""
    if "rewards" not in tensors:
        return RunningMoments()
    count, mean, squares = tensors["rewards"].tolist()
    return RunningMoments(int(count), mean, squares)
