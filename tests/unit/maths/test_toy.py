"""D2 of the design: credit for the last token, on a tabular chain with an exact frozen critic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dvpo_ray.maths.advantages import dvpo_gae, dvpo_onestep, dvpo_released, dvpo_static
from dvpo_ray.maths.masked import moments, whiten

SYMBOLS, BATCH, RATE, STEPS = 4, 32, 0.1, 300


def train_last_token(tokens: int, estimate: Callable[..., torch.Tensor], seed: int) -> tuple[float, float]:
    """Reward +1 if the last symbol is 0, else -1. Returns the exact final and best expected reward.

    The critic is the exact value of the uniform policy: -0.5 before the last symbol, the reward after it.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(tokens, SYMBOLS)
    mask = torch.ones(BATCH, tokens)
    best = -1.0
    for _ in range(STEPS):
        policy = torch.softmax(logits, -1)
        actions = torch.multinomial(policy, BATCH, replacement=True, generator=generator).T
        reward = torch.where(actions[:, -1] == 0, 1.0, -1.0)
        q = torch.full((BATCH, tokens + 1), -0.5)
        q[:, -1] = reward
        a = estimate(q, torch.zeros(BATCH, tokens), mask)
        a = whiten(a, mask, moments(a, mask), "full")
        one_hot = torch.nn.functional.one_hot(actions, SYMBOLS).float()
        logits += RATE * (a[..., None] * (one_hot - policy)).mean(0)
        best = max(best, 2 * float(policy[-1, 0]) - 1)
    return 2 * float(torch.softmax(logits, -1)[-1, 0]) - 1, best


@pytest.mark.parametrize("tokens", [8, 32, 128])
@pytest.mark.parametrize(
    "estimate",
    [lambda q, k, m: dvpo_gae(q, k, m, 0.95), dvpo_onestep, dvpo_static],
    ids=["dvpo_gae", "dvpo_onestep", "dvpo_static"],
)
def test_corrected_forms_learn_the_last_token(tokens: int, estimate: Callable[..., torch.Tensor]) -> None:
    finals = [train_last_token(tokens, estimate, seed)[0] for seed in range(3)]
    assert min(finals) >= 0.95


@pytest.mark.parametrize("tokens", [8, 32, 128])
def test_released_form_gives_the_last_token_no_credit(tokens: int) -> None:
    runs = [train_last_token(tokens, lambda q, k, m: dvpo_released(q, k, m, 0.95, False), seed) for seed in range(5)]
    assert sum(final for final, _ in runs) / 5 < 0
    assert max(best for _, best in runs) < 0.8
