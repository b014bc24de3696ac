"""D2 of the design: credit for the last token, on a tabular chain with an exact frozen critic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dvpo_ray.maths.advantages import dvpo_gae, dvpo_onestep, dvpo_released, dvpo_static
from dvpo_ray.maths.masked import moments, whiten

SYMBOLS, BATCH, RATE, STEPS = 4, 32, 0.1, 300


def train_last_token(tokens: int, estimate: Callable[..., torch.Tensor], seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Reward +1 if the last symbol is 0, else -1. Returns the exact final and best expected rewards [seeds] of as many policies,
    each trained by itself on rows of its own.

    The critic is the exact value of the uniform policy: -0.5 before the last symbol, the reward after it.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(seeds, tokens, SYMBOLS)
    rows, mask = torch.zeros(seeds * BATCH, tokens), torch.ones(BATCH, tokens)
    best = torch.full((seeds,), -1.0)
    for _ in range(STEPS):
        policy = torch.softmax(logits, -1)
        drawn = torch.multinomial(policy.flatten(0, 1), BATCH, replacement=True, generator=generator)
        actions = drawn.reshape(seeds, tokens, BATCH).transpose(1, 2)
        q = torch.full((seeds, BATCH, tokens + 1), -0.5)
        q[..., -1] = torch.where(actions[..., -1] == 0, 1.0, -1.0)
        estimated = estimate(q.flatten(0, 1), rows, torch.ones_like(rows)).reshape(seeds, BATCH, tokens)
        a = torch.stack([whiten(one, mask, moments(one, mask), "full") for one in estimated])
        one_hot = torch.nn.functional.one_hot(actions, SYMBOLS).float()
        logits += RATE * (a[..., None] * (one_hot - policy[:, None])).mean(1)
        best = torch.maximum(best, 2 * policy[:, -1, 0] - 1)
    return 2 * torch.softmax(logits, -1)[:, -1, 0] - 1, best


@pytest.mark.parametrize("tokens", [8, 32, 128])
@pytest.mark.parametrize(
    "estimate",
    [lambda q, k, m: dvpo_gae(q, k, m, 0.95), dvpo_onestep, dvpo_static],
    ids=["dvpo_gae", "dvpo_onestep", "dvpo_static"],
)
def test_corrected_forms_learn_the_last_token(tokens: int, estimate: Callable[..., torch.Tensor]) -> None:
    finals, _ = train_last_token(tokens, estimate, seeds=3)
    assert float(finals.min()) >= 0.95


@pytest.mark.parametrize("tokens", [8, 32, 128])
def test_released_form_gives_the_last_token_no_credit(tokens: int) -> None:
    finals, best = train_last_token(tokens, lambda q, k, m: dvpo_released(q, k, m, 0.95, False), seeds=5)
    assert float(finals.mean()) < 0
    assert float(best.max()) < 0.8
