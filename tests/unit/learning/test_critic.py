"""An online critic's step, the rewards it learns from, and the settings of `ppo` and `p3o`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.algorithms import CriticSection, DvpoGae, P3o, Ppo
from dvpo_ray.config.kl import FixedKl, KlSection
from dvpo_ray.config.loading import build
from dvpo_ray.config.rewards import FunctionReward
from dvpo_ray.errors import ConfigError
from dvpo_ray.learning.critic_update import CriticBatch, critic_loss
from dvpo_ray.learning.policy_update import units
from dvpo_ray.learning.token_rewards import running_of, running_state, token_rewards
from dvpo_ray.maths.running import RunningMoments
from dvpo_ray.types import Ragged, ScoredBatch
from tests.support.fakes import scored_batch

KL = KlSection(control=FixedKl(coefficient=0.0))
ONE = {"x": FunctionReward(function="a:b")}


def with_scores(scored: ScoredBatch, scores: list[float]) -> ScoredBatch:
    return replace(scored, channels={"x": Ragged.of([[score] for score in scores], np.float32)})


def test_rewards_are_normalised_over_the_whole_run_and_clipped() -> None:
    settings = Ppo.model_validate({"clip_rewards": 1.2})
    first = token_rewards(with_scores(scored_batch([2, 1]), [1.0, 3.0]), settings, KL, 0.0, ONE, RunningMoments())
    assert first.rewards_bt.tolist() == [[0.0, -1.0], [1.0, 0.0]]
    kept = running_of(running_state(first.moments))
    second = token_rewards(with_scores(scored_batch([1, 1]), [2.0, 9.0]), settings, KL, 0.0, ONE, kept)
    scores = np.array([1.0, 3.0, 2.0, 9.0])
    assert second.rewards_bt[0, 0] == pytest.approx((2 - scores.mean()) / scores.std())
    assert second.rewards_bt[1, 0] == pytest.approx(1.2), "1.7 deviations above the mean"
    assert second.metrics["reward/x"] == 5.5


def test_rows_that_abstain_are_no_part_of_the_running_mean() -> None:
    """Half the rows have no reward: they get none, and the others are compared among themselves."""
    channel = Ragged.of([[5.0], [], [3.0], []], np.float32)
    scored = replace(scored_batch([2, 2, 2, 2]), channels={"x": channel})
    found = token_rewards(scored, Ppo(), KL, 0.0, ONE, RunningMoments())
    assert found.terminal_b.tolist() == pytest.approx([1.0, 0.0, -1.0, 0.0])
    assert found.moments.count == 2 and found.moments.mean == 4.0


def test_the_reward_of_an_answers_only_token_is_that_of_a_token() -> None:
    """Where a channel prices tokens, an answer of one token is no whole answer to be scaled with others."""
    priced = Ragged.of([[0.0, 1.0], [-1.0]], np.float32)
    for name in ("environment", "x"):
        found = token_rewards(replace(scored_batch([2, 1]), channels={name: priced}), Ppo(), KL, 0.0, ONE, RunningMoments())
        assert found.rewards_bt.tolist() == [[0.0, 1.0], [-1.0, 0.0]] and found.moments.count == 0


def test_other_estimators_take_rewards_as_they_are() -> None:
    found = token_rewards(with_scores(scored_batch([2, 1]), [1.0, 3.0]), DvpoGae(), KL, 0.0, ONE, RunningMoments())
    assert found.rewards_bt.tolist() == [[0.0, 1.0], [3.0, 0.0]] and found.moments.count == 0


def test_a_critic_learns_the_reward_of_a_state() -> None:
    """Gradient steps on the values themselves bring them to the returns, at every state but the one after the end."""
    scored = scored_batch([3, 1])
    rewards_bt = torch.tensor([[0.0, 0.0, 1.0], [-2.0, 0.0, 0.0]])
    mask_bt = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    values = torch.zeros(6, requires_grad=True)
    for _ in range(200):
        batch = CriticBatch.of(
            replace(scored, values=Ragged(values.detach().numpy().copy(), np.array([4, 2]))), rewards_bt, mask_bt, 0.95
        )
        (gradient,) = torch.autograd.grad(critic_loss(values, batch, [0, 1], 0.2), values)
        values = (values - 0.1 * gradient).detach().requires_grad_(True)
    assert values.tolist() == pytest.approx([1, 1, 1, 0, -2, 0], abs=1e-3)
    assert batch.metrics()["critic/explained_variance"] > 0.99


def test_preset_max_fills_in_what_is_not_set() -> None:
    full, plain = Ppo(), Ppo(preset="plain")
    assert full.normalise_rewards and full.clip_rewards == 5.0 and Ppo(critic=CriticSection()).clip_rewards == 5.0
    assert full.critic.clip_range == 0.2 and full.critic.warmup_steps == 2
    assert not plain.normalise_rewards and plain.clip_rewards == 0
    assert plain.critic.clip_range == 0 and plain.critic.warmup_steps == 0
    mixed = Ppo.model_validate({"normalise_rewards": False, "clip_rewards": 0.0, "critic": {"warmup_steps": 0}})
    assert not mixed.normalise_rewards and mixed.clip_rewards == 0
    assert mixed.critic.warmup_steps == 0 and mixed.critic.clip_range == 0.2
    assert Ppo.model_validate(mixed.model_dump()) == mixed


def test_pairs_stay_together_only_where_their_ratio_is_one() -> None:
    scored = replace(scored_batch([1, 2, 3, 4, 5]), group_ids=np.array([7, 7, 9, 9, 9]))
    assert units(scored, P3o()) == [[0], [1], [2], [3], [4]]
    assert units(scored, P3o(clip="joint")) == [[0, 1], [2, 3], [4, 4]]


def recipe(tmp_path: Path, **policy: Any) -> PolicyRecipe:
    data = {"source": str(tmp_path), "max_prompt_tokens": 64}
    tree = {"policy": {"data": data, "value_model": None, "rollout": {"max_new_tokens": 64}} | policy}
    return build(PolicyRecipe, tree)


def test_ppo_needs_a_reward_and_no_value_model(tmp_path: Path) -> None:
    rewards = {"x": {"type": "function", "function": "a:b"}}
    assert recipe(tmp_path, advantage={"type": "ppo"}, rewards=rewards).policy.trained_models == 2
    with pytest.raises(ConfigError, match=r"type = 'ppo' learns from rewards: name at least one of policy\.rewards"):
        recipe(tmp_path, advantage={"type": "ppo"})
    with pytest.raises(ConfigError, match=r"warmup_steps \(2\) leaves the policy none of the 2 steps"):
        recipe(tmp_path, advantage={"type": "ppo"}, rewards=rewards, steps=2)
    with pytest.raises(ConfigError, match=r"keep_best has nothing to compare: no value model is read; set evaluation\.gold"):
        recipe(tmp_path, advantage={"type": "ppo"}, rewards=rewards, checkpoint={"keep_best": 1})
    with pytest.raises(ConfigError, match="needs an advantage.type without an online critic"):
        recipe(tmp_path, advantage={"type": "ppo", "whitening": "scale"}, rewards=rewards, streaming=True)


def test_p3o_needs_pairs(tmp_path: Path) -> None:
    given = {"value_model": "v", "rollout": {"answers_per_prompt": 3}, "off_policy": {"max_staleness": 1}}
    with pytest.raises(ConfigError, match=r"answers_per_prompt = 3 is odd and off_policy\.max_staleness = 1 is not 0"):
        recipe(tmp_path, advantage={"type": "p3o"}, **given)
    rollout = {"answers_per_prompt": 2, "max_new_tokens": 64, "prompts_per_step": 4}
    with pytest.raises(ConfigError, match=r"advantage\.whitening = 'full' would take pairs apart"):
        recipe(tmp_path, advantage={"type": "p3o", "whitening": "full"}, value_model="v", rollout=rollout)
    with pytest.raises(ConfigError, match="4 pairs of answers, fewer than ppo.mini_batches x learner.ranks = 8"):
        recipe(
            tmp_path,
            advantage={"type": "p3o", "clip": "joint"},
            value_model="v",
            rollout=rollout,
            learner={"ranks": 8, "token_budget": 1024},
        )
    with pytest.raises(ConfigError, match=r"learner.token_budget \(200\) must be at least 256"):
        recipe(
            tmp_path,
            advantage={"type": "p3o", "clip": "joint"},
            value_model="v",
            rollout=rollout,
            learner={"token_budget": 200},
        )
