"""Offline trainers on real Ray, DeepSpeed and vLLM, with a tiny model: reward models and what they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.config import RewardRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.errors import ModelError
from dvpo_ray.models.value_model import read_seal
from jobs.pretrain_value import pretrain_value
from jobs.train_policy import train_policy
from tests.real import ROLLOUT, MakePolicyRecipe, metrics, value_tree

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reward(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reward")
    return pretrain_value(build(RewardRecipe, value_tree(tiny_model, pairs, folder)))


def test_a_reward_model_ranks_held_out_pairs_by_its_last_value(reward: dict[str, Any]) -> None:
    assert reward["reward_pair_accuracy"] >= 0.9
    assert not any(key.startswith("gvm") for key in reward)
    folder = Path(reward["reward_model"])
    lines = metrics(folder.parent)
    assert lines[0]["loss/value"] == pytest.approx(0.6931, abs=1e-4), "log 2: a head of zeros"
    assert lines[-1]["loss/value"] < 0.3
    seal = read_seal(folder)
    assert seal.is_reward_model and seal.held_out_accuracy["last"] == reward["reward_pair_accuracy"]
    assert seal.value_std > 0.5, "chosen and rejected answers lie apart"


def test_a_policy_learns_from_a_reward_model(reward: dict[str, Any], policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """Without a value model: GRPO on its scores of whole answers."""
    recipe = policy_recipe(
        tmp_path,
        "judged",
        value_model=None,
        advantage={"type": "grpo", "score": "none"},
        rewards={"taste": {"type": "model", "folder": reward["reward_model"]}},
        rollout=ROLLOUT | {"prompts_per_step": 4, "answers_per_prompt": 4},
    )
    result = train_policy(recipe)
    steps = [line for line in metrics(tmp_path / "judged") if "seconds/step" in line]
    assert steps[-1]["reward/taste"] > steps[0]["reward/taste"]
    assert result["gold_after"] > result["gold_before"]
    assert [len(digest) for digest in result["reward_parameters_sha256"].values()] == [64]


def test_a_reward_model_is_refused_as_value_model(
    reward: dict[str, Any], policy_recipe: MakePolicyRecipe, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"policy\.value_model: .* is a reward model"):
        train_policy(policy_recipe(tmp_path, "refused", value_model=reward["reward_model"]))
    assert not (tmp_path / "refused").exists()
