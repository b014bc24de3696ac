"""What an environment said is read as context and learned from by nobody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dvpo_ray.config.environments import ENVIRONMENT_REWARD
from dvpo_ray.learning.batching import pad_sequences
from dvpo_ray.learning.policy_update import TokenBatch, loss, prepare
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from dvpo_ray.types import Ragged, ScoredBatch
from tests.support.engines import settings
from tests.support.fakes import scored_batch

LENGTHS = [7, 5]
# Two turns with three tokens of an environment between them; one turn after a forced token.
MASKS = [[1, 1, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]


def episodes() -> ScoredBatch:
    rewards = [np.zeros(7), np.zeros(5)]
    rewards[0][[1, 6]] = 0.5, 1.0
    return replace(
        scored_batch(LENGTHS, seed=4),
        action_mask=Ragged.of([np.array(row, dtype=bool) for row in MASKS], np.bool_),
        channels={ENVIRONMENT_REWARD: Ragged.of(rewards, np.float32)},
    )


def backward(folder: Path, scored: ScoredBatch, **advantage: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient at what each position's distribution is made from [B, L, hidden]."""
    config = settings(answers_per_prompt=2)
    estimator = config.advantage.model_copy(update=advantage)
    prepared, _ = prepare(scored, 0, estimator, config.kl, 0.1)
    model, kept = load_policy(folder, torch.float32, "eager"), []

    def keep(module: torch.nn.Module, given: Any, made: torch.Tensor) -> None:
        made.retain_grad()
        kept.append(made)

    model.model.norm.register_forward_hook(keep)
    prompts, responses, masks = scored.sequences(range(len(scored)))
    batch = pad_sequences(prompts, responses, masks=masks)
    read = PolicyReader(model, share_prefix=False)
    log_probs, entropy = read(batch.input_ids, batch.attention_mask, batch.before_response, batch.targets)
    tokens = TokenBatch.of(prepared, list(range(len(scored))), None, "cpu")
    total, _ = loss(log_probs, entropy, tokens, estimator, config.ppo, config.kl, config.off_policy, 0.1)
    total.backward()
    (hidden,) = kept
    assert hidden.grad is not None
    return total.detach(), hidden.grad


def test_tokens_that_the_policy_did_not_write_have_a_gradient_of_exactly_zero(tiny_model: Path) -> None:
    scored = episodes()
    _, gradient = backward(tiny_model, scored)
    for row, (prompt, mask) in enumerate(zip(scored.prompt_ids.lengths, MASKS, strict=True)):
        sizes = gradient[row].abs().amax(dim=1)
        # The distribution of a token is made one place before it.
        own = {int(prompt) - 1 + i for i, wrote in enumerate(mask) if wrote}
        assert {place for place in range(sizes.size(0)) if sizes[place] > 0} == own


@pytest.mark.parametrize("name", ["log_probs", "ref_log_probs", "versions"])
def test_what_stands_at_tokens_of_others_changes_nothing(tiny_model: Path, name: str) -> None:
    scored = episodes()
    odd = getattr(scored, name).flat.copy()
    odd[~scored.action_mask.flat] = 50
    changed = replace(scored, **{name: Ragged(odd, getattr(scored, name).lengths)})
    (before, one), (after, other) = backward(tiny_model, scored), backward(tiny_model, changed)
    assert torch.equal(before, after) and torch.equal(one, other)


def test_the_share_of_episodes_that_failed_is_a_metric() -> None:
    config = settings()
    scored = replace(episodes(), end_states=("stop", "crashed"))
    _, metrics = prepare(scored, 0, config.advantage, config.kl, 0.1)
    assert metrics["environment/failed_share"] == 0.5 and metrics["reward/environment"] == pytest.approx(0.75)
    _, metrics = prepare(scored_batch(LENGTHS), 0, config.advantage, config.kl, 0.1)
    assert "environment/failed_share" not in metrics
