"""What tokens earn: KL to the reference at each, rewards of single tokens, and those of whole answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.algorithms import Signals, make_algorithm
from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.config.environments import ENVIRONMENT_REWARD
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
    columns_bc, given_b = [], np.zeros(len(scored), dtype=bool)
    for name, channel in actions.rewards.items():
        metrics |= _described(name, channel)
        whole_b = _is_whole(name, channel, actions.lengths)
        reward_bt += weights[name] * _of_tokens(channel, whole_b, actions.lengths)
        columns_bc.append(_of_answers(channel, whole_b))
        given_b |= whole_b
    if given_b.any():
        sums_b = np.stack(columns_bc, axis=1) @ np.array(list(weights.values()), dtype=np.float32)
        # A row without any such reward is no part of what they are compared with.
        sums_b[given_b], moments = make_algorithm(advantage).scaled(sums_b[given_b], moments)
        terminal_b = torch.from_numpy(sums_b)
    return TokenRewards(kl_bt, reward_bt, terminal_b, mask_bt, metrics, moments)


def _is_whole(name: str, channel: Ragged, lengths: np.ndarray) -> np.ndarray:
    """Which rows of a channel have a number of the whole answer [B].

    The one number of an answer of one token is that token's where the channel is one of tokens: an environment's, or one that
    gives other answers a number for each token.
    """
    of_tokens = name == ENVIRONMENT_REWARD or bool((channel.lengths > 1).any())
    whole_b: np.ndarray = (channel.lengths == 1) & ~(of_tokens & (lengths == 1))
    return whole_b


def _of_answers(channel: Ragged, whole_b: np.ndarray) -> np.ndarray:
    """The numbers of whole answers in a channel, 0 where there is none, float32 [B]."""
    found = [row[0] if whole else 0.0 for row, whole in zip(channel.rows(), whole_b, strict=True)]
    return np.array(found, dtype=np.float32)


def _of_tokens(channel: Ragged, whole_b: np.ndarray, lengths: np.ndarray) -> Tensor:
    """The numbers of single tokens in a channel, 0 where there are none [B, T]."""
    given = zip(channel.rows(), whole_b, lengths, strict=True)
    rows = [np.zeros(length) if whole or not row.size else row for row, whole, length in given]
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
