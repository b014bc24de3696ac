"""The registry of advantage estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Estimator = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
_ESTIMATORS: dict[str, Estimator] = {}


def register(name: str) -> Callable[[Estimator], Estimator]:
    """Make a function of (settings, q_bt [B, T+1], k_bt [B, T], mask_bt [B, T]) -> [B, T] known under ``name``."""

    def add(function: Estimator) -> Estimator:
        if name in _ESTIMATORS:
            raise ValueError(f"advantage estimator '{name}' is registered twice")
        _ESTIMATORS[name] = function
        return function

    return add


def estimator_names() -> list[str]:
    """All registered names."""
    return sorted(_ESTIMATORS)


def advantages(settings: Any, q_bt: Tensor, k_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Advantages [B, T] by the estimator that ``settings.type`` names, not yet whitened."""
    return _ESTIMATORS[settings.type](settings, q_bt, k_bt, mask_bt)
