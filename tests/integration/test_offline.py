"""Offline trainers on real Ray, DeepSpeed and vLLM, with a tiny model: reward models, what they train, and DPO."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray as ray_module
import torch
from safetensors.torch import load_file

from actors.cluster.hosting import hosted
from actors.learner.policy_gang import DpoLearner
from dvpo_ray.config import RewardRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.sections import ClusterSection
from dvpo_ray.data import EncodedPair
from dvpo_ray.errors import ModelError, RunStoppedError
from dvpo_ray.learning.pairs import labelled
from dvpo_ray.models.value_model import read_seal
from dvpo_ray.report import write_report
from dvpo_ray.runs.run import Event
from jobs.pretrain_value import pretrain_value
from jobs.train_dpo import train_dpo
from jobs.train_policy import train_policy
from tests.support.decided import decided
from tests.support.engines import MODEL, weights_in
from tests.support.hosts import Hosts
from tests.support.real import ROLLOUT, MakePolicyRecipe, dpo_recipe, metrics, value_tree

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reward(tiny_model: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reward")
    with hosted(hosts):
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
        evaluation=None,
    )
    result = train_policy(recipe)
    steps = [line for line in metrics(tmp_path / "judged") if "seconds/step" in line]
    assert steps[-1]["reward/taste"] > steps[0]["reward/taste"]
    assert [len(digest) for digest in result["reward_parameters_sha256"].values()] == [64]


def test_a_reward_model_is_refused_as_value_model(
    reward: dict[str, Any], policy_recipe: MakePolicyRecipe, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"policy\.value_model: .* is a reward model"):
        train_policy(policy_recipe(tmp_path, "refused", value_model=reward["reward_model"]))
    assert not (tmp_path / "refused").exists()


def test_dpo_raises_the_margin_and_the_gold_of_held_out_answers(
    tiny_model: Path, pairs: Path, prompts: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = dpo_recipe(
        tiny_model,
        pairs,
        tmp_path,
        "dpo",
        epochs=2,
        rollout={key: ROLLOUT[key] for key in ("max_new_tokens", "engine")},
        scorer={"dtype": "float32"},
        evaluation={"source": str(prompts[1]), "gold": "tests.support.fakes:early_letters", "every": 4},
    )
    result = train_dpo(recipe)
    lines = metrics(tmp_path / "dpo")
    steps = [line for line in lines if "loss/dpo" in line]
    assert steps[0]["loss/dpo"] == pytest.approx(0.6931, abs=1e-4), "log 2: the policy is its own reference"
    assert abs(steps[0]["dpo/margin"]) < 1e-4
    assert steps[-1]["loss/dpo"] < 0.5 and steps[-1]["dpo/margin"] > 0.5
    assert result["dpo_pair_accuracy"] >= 0.9
    assert [line["step"] for line in lines if "eval/gold" in line] == [0, 4, 8, len(steps)]
    assert result["gold_after"] > result["gold_before"]
    assert result["kl_per_token"] > 0.01, "engines answer with the trained weights"
    assert Path(write_report(tmp_path / "dpo")).read_text().count("<svg") >= 3


@pytest.mark.fresh
def test_a_dpo_run_that_was_stopped_or_lost_ranks_goes_on_bit_for_bit(
    tiny_model: Path, pairs: Path, tmp_path: Path, hosts: Hosts
) -> None:
    """Adapters with dropout, whose random numbers a checkpoint keeps; no engine is started without an evaluation."""
    dpo = {"lora": {"rank": 4, "dropout": 0.1}, "checkpoint": {"every": 0}}

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    straight = dpo_recipe(tiny_model, pairs, tmp_path, "straight", **dpo)
    broken = dpo_recipe(tiny_model, pairs, tmp_path, "broken", **dpo)
    with hosted(hosts):
        results = [train_dpo(straight)]
        with pytest.raises(RunStoppedError, match="stopped after step 2 of 5"):
            train_dpo(broken, stop)
        results.append(train_dpo(broken.model_copy(update={"run": broken.run.model_copy(update={"resume": "auto"})})))
    killed: list[str] = []

    def kill(event: Event) -> None:
        if event.kind == "step" and event.step == 4 and not killed:
            killed.append("dpo-learner-0")
            psutil.Process(ray_module.get(ray_module.get_actor(killed[0]).pid.remote(), timeout=60)).kill()

    results.append(train_dpo(dpo_recipe(tiny_model, pairs, tmp_path, "lost", **dpo | {"checkpoint": {"every": 2}}), kill))
    assert killed
    for name in ("policy", "adapters"):
        file = "model.safetensors" if name == "policy" else "adapter_model.safetensors"
        left, *others = (load_file(Path(result[name]) / file) for result in results)
        assert all(torch.equal(left[key], right[key]) for right in others for key in left)
    names = ("straight", "broken", "lost")
    learned = [[(line["step"], line["loss/dpo"]) for line in metrics(tmp_path / name)] for name in names]
    assert learned[0] == learned[1] == learned[2]


@pytest.fixture(scope="module")
def two_steps() -> dict[str, torch.Tensor]:
    """Weights after two steps of the first gang of the test below."""
    return {}


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (3, 2)])
def test_sharding_makes_no_difference_to_dpo(
    ray: ClusterSection, tiny_model: Path, tmp_path: Path, two_steps: dict[str, torch.Tensor], stage: int, ranks: int
) -> None:
    """Two steps, the second of fewer pairs than ranks, whose other rank takes part with nothing to learn from."""
    learner = {"dtype": "float32", "learning_rate": 1e-3, "token_budget": 256, "ranks": ranks, "backend": {"zero_stage": stage}}
    recipe = dpo_recipe(tiny_model, tmp_path / "none", tmp_path, "x", average_log_probs=True, beta=5.0, learner=learner)
    dpo = decided(recipe).dpo
    rng = np.random.default_rng(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(2, 300, count))

    data = [labelled(EncodedPair(str(i), "", ids(4 + i), str(i), ids(3 + i % 4), ids(8 - i))) for i in range(6)]
    gang = DpoLearner(str(tiny_model), MODEL, dpo, ray, 0, 2)
    try:
        gang.wait_ready()
        parts = gang.call("scores", [answer for pair in data for answer in pair], doing="reading")
        found = {index: score for part in parts for index, score in part.items()}
        reference = np.array([found[i] for i in range(12)]).reshape(6, 2)
        for rows in (slice(0, 5), slice(5, 6)):
            metrics_of_ranks = gang.call("step", data[rows], reference[rows], doing="a step")
            assert all(one["loss/dpo"] == metrics_of_ranks[0]["loss/dpo"] for one in metrics_of_ranks)
        weights = weights_in(gang)
    finally:
        gang.stop()
    if not two_steps:
        two_steps.update(weights)
    assert all(torch.allclose(weights[name], two_steps[name], rtol=0, atol=1e-4) for name in two_steps)
