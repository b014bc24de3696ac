"""The rivals of DVPO as whole runs on real Ray, vLLM and DeepSpeed: PPO with its critic, and P3O."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from dvpo_ray.checkpoints.store import CheckpointStore
from dvpo_ray.errors import ModelError, RunStoppedError
from dvpo_ray.runs.run import Event
from jobs.evaluate import rank_pairs
from jobs.train_policy import train_policy
from tests.support.real import ROLLOUT, STEPS, MakePolicyRecipe, StraightRun, assert_books_balance, metrics

pytestmark = pytest.mark.integration
CRITIC = {"learning_rate": 1e-2}
PPO: dict[str, Any] = {
    "value_model": None,
    "advantage": {"type": "ppo", "critic": CRITIC},
    "rewards": {"letters": {"function": "tests.support.fakes:early_letters"}},
    "checkpoint": {"every": 3},
}


@pytest.fixture(scope="module")
def ppo_ptx(pairs: Path) -> dict[str, Any]:
    """With a pretraining loss on the chosen answers of pairs."""
    data = {"source": str(pairs), "max_prompt_tokens": 64, "max_answer_tokens": 32}
    return PPO | {"ptx": {"data": data, "coefficient": 1.0, "rows_per_step": 8}}


@pytest.fixture(scope="module")
def ppo_run(
    policy_recipe: MakePolicyRecipe, ppo_ptx: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """A whole run in which nothing fails."""
    folder = tmp_path_factory.mktemp("ppo")
    return train_policy(policy_recipe(folder, "ppo", **ppo_ptx)), folder / "ppo"


def steps_of(folder: Path) -> list[dict[str, float]]:
    return [line for line in metrics(folder) if "seconds/step" in line]


def test_ppo_trains_critic_and_policy(ppo_run: tuple[dict[str, Any], Path], pairs: Path) -> None:
    result, folder = ppo_run
    assert_books_balance(folder, STEPS)
    steps = steps_of(folder)
    # Preset `max`: in the first two steps the critic learns alone, so the third step's answers are still the reference's.
    assert all(abs(step["kl/per_token"]) < 1e-5 for step in steps[:3])
    assert steps[0]["value/mean"] == 0, "the head starts at zero"
    assert [step["optimizer/grad_norm"] > 0 for step in steps] == [False, False] + [True] * 4
    assert steps[-1]["kl/per_token"] > 1e-4, "the policy has moved"
    assert steps[1]["value/mean"] != 0, "the critic has moved"
    assert steps[-1]["loss/ptx"] < steps[0]["loss/ptx"] - 0.1, "chosen answers have become likelier"
    assert all(step["gap/abs_log_prob"] <= 1e-3 for step in steps)
    found = rank_pairs(folder / "critic", str(pairs), 64, 32, critic=True)
    assert found["pairs"] == 96 and 0 <= found["accuracy"]["last"] <= 1, "the critic is saved as a model that can be asked"
    assert "CriticRank" in result["peak_memory_by_process_gb"]
    assert not any(key.startswith("gvm") for key in result)


def test_only_ppo_holds_a_critic(straight_run: StraightRun) -> None:
    """No process, file, optimizer or metric of one in a DVPO run, nor of a reward."""
    assert any("PolicyLearnerRank" in process for process in straight_run.processes)
    assert not any("Critic" in process for process in straight_run.processes)
    assert not any("Critic" in name for name in straight_run.result["peak_memory_by_process_gb"])
    checkpoint = CheckpointStore(straight_run.folder / "checkpoints").newest()
    assert checkpoint is not None
    assert sorted(file.name for file in checkpoint.folder.iterdir()) == ["learner-00000.safetensors", "manifest.json"]
    assert not any(name.startswith(("critic/", "reward/")) for line in metrics(straight_run.folder) for name in line)


@pytest.mark.slow
def test_a_stopped_ppo_run_goes_on_bit_for_bit(
    ppo_run: tuple[dict[str, Any], Path], policy_recipe: MakePolicyRecipe, ppo_ptx: dict[str, Any], tmp_path: Path
) -> None:
    """Policy, critic, both optimizers and the running moments of rewards are those of the run that nothing stopped, and so are
    the rows of the pretraining loss."""

    def stop(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = policy_recipe(tmp_path, "stopped", **ppo_ptx)
    with pytest.raises(RunStoppedError):
        train_policy(recipe, stop)
    result = train_policy(recipe.model_copy(update={"run": recipe.run.model_copy(update={"resume": "auto"})}))
    golds = ("gold_before", "gold_after", "win_rate", "kl_per_token")
    assert [result[name] for name in golds] == [ppo_run[0][name] for name in golds], "evaluations go on as well"
    a, b = (CheckpointStore(folder / "checkpoints").newest() for folder in (ppo_run[1], tmp_path / "stopped"))
    assert a is not None and b is not None and a.step == b.step == STEPS
    for file in ("learner-00000.safetensors", "critic-00000.safetensors"):
        left, right = (load_file(checkpoint.folder / file) for checkpoint in (a, b))
        assert set(left) == set(right) and "rewards" in left
        assert all(left[name].equal(right[name]) for name in left if name != "rng"), file


@pytest.mark.slow
@pytest.mark.fresh
def test_a_killed_critic_brings_both_back_to_the_checkpoint(
    policy_recipe: MakePolicyRecipe, ppo_ptx: dict[str, Any], tmp_path: Path
) -> None:
    def kill(event: Event) -> None:
        if event.kind == "step" and event.step == 5 and not killed:
            for process in psutil.Process().children(recursive=True):
                if " ".join(process.cmdline()).startswith("ray::CriticRank"):
                    killed.append(process.pid)
                    process.kill()

    killed: list[int] = []
    phases: list[str] = []
    train_policy(policy_recipe(tmp_path, "killed", **ppo_ptx), lambda event: (kill(event), phases.append(event.text)))  # type: ignore[func-returns-value]
    assert len(killed) == 1
    assert any("going on after step 3" in phase for phase in phases)
    assert_books_balance(tmp_path / "killed", STEPS)
    assert all(step["loss/ptx"] > 0 for step in steps_of(tmp_path / "killed")), "new ranks have the rows too"


def test_what_a_critic_starts_from_is_checked_before_anything_starts(
    policy_recipe: MakePolicyRecipe, tiny_model: Path, tmp_path: Path
) -> None:
    changed = {"advantage": {"type": "ppo", "critic": CRITIC | {"initial": str(tiny_model)}}}
    with pytest.raises(ModelError, match=r"policy\.advantage\.critic\.initial: .*is not a value model"):
        train_policy(policy_recipe(tmp_path, "none", **(PPO | changed)))
    assert not (tmp_path / "none" / "config.json").exists()


@pytest.mark.slow
def test_a_critic_on_two_sharded_ranks_learns_what_every_answer_earns(
    value: dict[str, Any], policy_recipe: MakePolicyRecipe, ppo_ptx: dict[str, Any], tmp_path: Path
) -> None:
    """It starts from a value model; every answer earns 1, so that is the value of every state."""
    learner = {"dtype": "float32", "learning_rate": 5e-3, "token_budget": 512, "ranks": 2, "backend": {"zero_stage": 2}}
    critic = CRITIC | {"initial": value["value_model"], "warmup_steps": 0}
    changed = {
        "learner": learner,
        "advantage": {"type": "ppo", "preset": "plain", "critic": critic},
        "rewards": {"one": {"function": "tests.support.fakes:always_one"}},
        "ppo": {"inner_epochs": 2, "mini_batches": 2},
        "steps": 4,
    }
    train_policy(policy_recipe(tmp_path, "two", **(ppo_ptx | changed)))
    steps = steps_of(tmp_path / "two")
    assert steps[-1]["loss/ptx"] < steps[0]["loss/ptx"] - 0.1
    assert steps[0]["value/mean"] != 0, "the critic starts from the value model"
    assert abs(steps[-1]["value/mean"] - 1) < abs(steps[0]["value/mean"] - 1) / 2
    assert all(step["critic/grad_norm"] > 0 and step["optimizer/grad_norm"] > 0 for step in steps)


def test_p3o_improves_what_the_frozen_value_sees_on_two_ranks(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """Five pairs on two ranks, two to a micro-batch: one rank has a micro-batch more, and the other stands in."""
    rollout = ROLLOUT | {"prompts_per_step": 5, "answers_per_prompt": 2}
    learner = {
        "dtype": "float32",
        "learning_rate": 5e-3,
        "token_budget": 152,
        "ranks": 2,
        "backend": {"zero_stage": 2},
        "max_padding": 1.0,
    }
    advantage = {"type": "p3o", "clip": "joint"}
    train_policy(policy_recipe(tmp_path, "p3o", advantage=advantage, rollout=rollout, learner=learner, evaluation=None))
    steps = steps_of(tmp_path / "p3o")
    assert [step["ledger/trained"] for step in steps] == [10 * n for n in range(1, STEPS + 1)]
    assert steps[-1]["value/last"] > steps[0]["value/last"]
