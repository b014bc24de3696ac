"""The registry of advantage estimators, and of losses for those that do not take PPO's token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from dvpo_ray.maths.losses import clipped_policy_loss

T = TypeVar("T")


@dataclass(frozen=True)
class Signals:
    """What estimators read of B answers of up to T tokens, padded on the right.

    Attributes:
        q_bt: frozen values q_0..q_T [B, T+1].
        k_bt: KL reward of each token, and with the last token the scores of the recipe's rewards [B, T].
        scores_b: these scores alone [B].
        mask_bt: active tokens [B, T].
        group_b: number of the prompt that each answer belongs to [B].
    """

    q_bt: Tensor
    k_bt: Tensor
    scores_b: Tensor
    mask_bt: Tensor
    group_b: Tensor


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


Estimator = Callable[[Any, Signals], Tensor]
Loss = Callable[[Any, LossTerms], tuple[Tensor, Tensor]]
_ESTIMATORS: dict[str, Estimator] = {}
_LOSSES: dict[str, Loss] = {}


def register(name: str) -> Callable[[Estimator], Estimator]:
    """Make a function of (settings, signals) -> advantages [B, T] known under ``name``."""
    return _adder(_ESTIMATORS, name, "advantage estimator")


def register_loss(name: str) -> Callable[[Loss], Loss]:
    """Make a function of (settings, terms) -> (loss sum, clipped tokens [N]) the loss of the estimator called ``name``."""
    return _adder(_LOSSES, name, "loss")


def _adder(known: dict[str, T], name: str, what: str) -> Callable[[T], T]:
    def add(function: T) -> T:
        if name in known:
            raise ValueError(f"{what} '{name}' is registered twice")
        known[name] = function
        return function

    return add


def estimator_names() -> list[str]:
    """All registered names."""
    return sorted(_ESTIMATORS)


def advantages(settings: Any, signals: Signals) -> Tensor:
    """Advantages [B, T] by the estimator that ``settings.type`` names, not yet whitened."""
    return _ESTIMATORS[settings.type](settings, signals)


def policy_loss(settings: Any, terms: LossTerms) -> tuple[Tensor, Tensor]:
    """Loss summed and which tokens were clipped [N]: the estimator's own, or PPO's token by token."""
    own = _LOSSES.get(settings.type)
    if own is not None:
        return own(settings, terms)
    return clipped_policy_loss(terms.log_probs, terms.old_log_probs, terms.advantages, terms.clip_range, terms.weights)
