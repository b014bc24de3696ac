"""Checks of advantage estimators."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.algorithms.base import Algorithm, LossTerms, Signals, make_algorithm
from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.maths.running import RunningMoments
from dvpo_ray.testing.settings import assert_members, check_settings

LENGTHS = (3, 5, 1, 4, 5, 2, 4, 3)
GROUPS = (0, 0, 1, 1, 2, 2, 3, 3)
CLOSE = 1e-4


def check_algorithm(settings: AlgorithmSettings) -> None:
    """Advantages are finite and of the right shape, and depend neither on padding, nor on the order of rows, nor on what groups
    are called, nor on anything that the settings say they do not read; the loss of tokens has a finite gradient.

    Raises:
        AssertionError: they are not so.
    """
    check_settings(settings)
    algorithm = make_algorithm(settings)
    assert_members(algorithm, Algorithm)
    for seed in range(3):
        signals = _signals(seed)
        advantages = _advantages(algorithm, signals)
        for what, other, expected in _variants(settings, signals, advantages):
            found = _advantages(algorithm, other)
            gap = ((found - expected) * other.mask_bt).abs().max()
            assert gap < CLOSE, f"{_name(algorithm)}.advantages changes by up to {gap:.3g} {what}"
        _check_loss(algorithm, advantages, signals.mask_bt)
    _check_scaled(algorithm)


def _name(algorithm: Algorithm) -> str:
    return type(algorithm).__qualname__


def _signals(seed: int) -> Signals:
    """Eight answers in four groups."""
    random = torch.Generator().manual_seed(seed)
    count, longest = len(LENGTHS), max(LENGTHS)
    lengths_b = torch.tensor(LENGTHS)
    mask_bt = torch.arange(longest)[None] < lengths_b[:, None]
    kl_bt, reward_bt = (torch.randn(2, count, longest, generator=random) * mask_bt).unbind()
    q_bt = torch.randn(count, longest + 1, generator=random) * (torch.arange(longest + 1)[None] <= lengths_b[:, None])
    return Signals(q_bt, kl_bt, reward_bt, torch.randn(count, generator=random), mask_bt, torch.tensor(GROUPS))


def _advantages(algorithm: Algorithm, signals: Signals) -> Tensor:
    """Advantages with nothing where no token is, found without a change to what was given."""
    before = {field.name: getattr(signals, field.name).clone() for field in fields(Signals)}
    found = algorithm.advantages(signals)
    what = f"{_name(algorithm)}.advantages"
    for name, was in before.items():
        assert torch.equal(was, getattr(signals, name)), f"{what} changes signals.{name}, which it is given: work on a copy"
    shape = tuple(signals.mask_bt.shape)
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    assert got == shape, f"{what} gives {got}, expected a tensor [B, T] = {shape}"
    found = torch.where(signals.mask_bt.bool(), found, 0.0)
    assert torch.isfinite(found).all(), f"{what} gives numbers that are not finite"
    return found


def _variants(settings: AlgorithmSettings, signals: Signals, advantages: Tensor) -> list[tuple[str, Signals, Tensor]]:
    """(when, signals, the advantages that they must have)."""
    order = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(1))
    rows = Signals(**{field.name: getattr(signals, field.name)[order] for field in fields(Signals)})
    wide = {
        field.name: torch.nn.functional.pad(getattr(signals, field.name), (0, 3))
        for field in fields(Signals)
        if field.name.endswith("_bt")
    }
    found = [
        ("when it is asked again", signals, advantages),
        ("with the order of rows", rows, advantages[order]),
        ("with padding", replace(signals, **wide), torch.nn.functional.pad(advantages, (0, 3))),
        ("with what groups are called", replace(signals, group_b=7 - signals.group_b), advantages),
    ]
    # With an online critic, values are that critic's.
    if not settings.reads_values and settings.online_critic is None:
        found.append(("with values, though reads_values is False", replace(signals, q_bt=signals.q_bt + 1.0), advantages))
    if not settings.compares_answers:
        alone = replace(signals, group_b=torch.arange(len(LENGTHS)))
        found.append(("with groups, though compares_answers is False", alone, advantages))
    return found


def _check_loss(algorithm: Algorithm, advantages: Tensor, mask_bt: Tensor) -> None:
    what = f"{_name(algorithm)}.loss"
    flat = advantages[mask_bt.bool()]
    old = torch.linspace(-2.0, -0.5, flat.numel())
    log_probs = (old + 0.05).requires_grad_()
    loss, clipped = algorithm.loss(LossTerms(log_probs, old, flat, torch.tensor(LENGTHS), 0.2))
    assert loss.ndim == 0 and torch.isfinite(loss), f"{what} gives {loss!r:.200}, expected one finite number"
    assert tuple(clipped.shape) == tuple(flat.shape), (
        f"{what} says of {tuple(clipped.shape)} tokens whether they were clipped, not [N]"
    )
    assert loss.requires_grad, f"{what} gives a loss without a gradient: keep terms.log_probs in it"
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0, f"{what} has the gradient {gradient.tolist()}"


def _check_scaled(algorithm: Algorithm) -> None:
    rewards_b = np.linspace(-1.0, 2.0, 6, dtype=np.float32)
    scaled, moments = algorithm.scaled(rewards_b, RunningMoments())
    what = f"{_name(algorithm)}.scaled"
    assert np.shape(scaled) == rewards_b.shape and np.isfinite(scaled).all(), f"{what} gives {scaled!r:.200} for 6 rewards"
    assert isinstance(moments, RunningMoments), f"{what} gives {moments!r:.200}, expected RunningMoments beside the rewards"
