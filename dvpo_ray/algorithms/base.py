"""What every algorithm is: advantages of scored answers, and the loss of a policy on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.maths.losses import clipped_policy_loss
from dvpo_ray.maths.running import RunningMoments

S = TypeVar("S", bound=AlgorithmSettings)


@dataclass(frozen=True)
class Signals:
    """What is known of B answers of up to T tokens that the policy wrote, padded on the right.

    Attributes:
        q_bt: frozen values q_0..q_T [B, T+1].
        kl_bt: KL reward of each token [B, T].
        reward_bt: rewards of single tokens, weighted [B, T].
        terminal_b: rewards of whole answers, weighted [B].
        mask_bt: active tokens [B, T].
        group_b: number of the group that each answer belongs to: the answers of one prompt, unless the plan says otherwise [B].
    """

    q_bt: Tensor
    kl_bt: Tensor
    reward_bt: Tensor
    terminal_b: Tensor
    mask_bt: Tensor
    group_b: Tensor

    @property
    def k_bt(self) -> Tensor:
        """All rewards of each token: KL, its own, and with the last token that of the whole answer [B, T]."""
        last_b = self.mask_bt.long().sum(1, keepdim=True) - 1
        return (self.kl_bt + self.reward_bt).scatter_add(1, last_b, self.terminal_b[:, None])


@dataclass(frozen=True)
class LossTerms:
    """What losses read of N answer tokens, row after row.

    Attributes:
        log_probs: of the current policy, with gradient [N].
        old_log_probs: of the policy before the update [N].
        advantages: [N].
        lengths: tokens of each answer [B].
        clip_range: PPO's epsilon.
        weights: a factor for each token's term, without gradient [N], or None for 1.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    lengths: Tensor
    clip_range: float
    weights: Tensor | None = None


class Algorithm(Protocol):
    """Advantages and loss of scored answers. Stateless but for its settings: every rank has one of its own."""

    def advantages(self, signals: Signals) -> Tensor:
        """Advantages [B, T], not yet whitened."""
        ...

    def loss(self, terms: LossTerms) -> tuple[Tensor, Tensor]:
        """Loss summed over tokens, or over answers where a ratio is one of a whole answer, and which tokens were clipped [N]."""
        ...

    def scaled(self, rewards_b: np.ndarray, moments: RunningMoments) -> tuple[np.ndarray, RunningMoments]:
        """Rewards of whole answers as they are learned from [B], and the moments of all so far with these."""
        ...


class PolicyGradient(Generic[S]):
    """An algorithm with PPO's clipped loss of single tokens and rewards as they are, whose advantages a subclass gives."""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def loss(self, terms: LossTerms) -> tuple[Tensor, Tensor]:
        """Clipped loss summed over tokens, and which tokens were clipped [N]."""
        return clipped_policy_loss(terms.log_probs, terms.old_log_probs, terms.advantages, terms.clip_range, terms.weights)

    def scaled(self, rewards_b: np.ndarray, moments: RunningMoments) -> tuple[np.ndarray, RunningMoments]:
        """As they are."""
        return rewards_b, moments


def make_algorithm(settings: AlgorithmSettings) -> Algorithm:
    """The algorithm that settings choose."""
    algorithm: Algorithm = settings.build()
    return algorithm
