"""The registry of advantage estimators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Signals:
    """What estimators read of B answers of up to T tokens, padded on the right.

    Attributes:
        q_bt: frozen values q_0..q_T [B, T+1].
        k_bt: KL reward of each token [B, T].
        mask_bt: active tokens [B, T].
        group_b: number of the prompt that each answer belongs to [B].
    """

    q_bt: Tensor
    k_bt: Tensor
    mask_bt: Tensor
    group_b: Tensor


Estimator = Callable[[Any, Signals], Tensor]
_ESTIMATORS: dict[str, Estimator] = {}


def register(name: str) -> Callable[[Estimator], Estimator]:
    """Make a function of (settings, signals) -> advantages [B, T] known under ``name``."""

    def add(function: Estimator) -> Estimator:
        if name in _ESTIMATORS:
            raise ValueError(f"advantage estimator '{name}' is registered twice")
        _ESTIMATORS[name] = function
        return function

    return add


def estimator_names() -> list[str]:
    """All registered names."""
    return sorted(_ESTIMATORS)


def advantages(settings: Any, signals: Signals) -> Tensor:
    """Advantages [B, T] by the estimator that ``settings.type`` names, not yet whitened."""
    return _ESTIMATORS[settings.type](settings, signals)
