"""The jobs end to end on real Ray, vLLM and DeepSpeed, with a tiny model: data in, sealed value model, policy, report out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.cluster.hosting import hosted
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.errors import DataError
from dvpo_ray.models.value_model import read_seal
from dvpo_ray.report import write_report
from dvpo_ray.runs.run import Event
from jobs.evaluate import evaluate_policy, evaluate_value
from jobs.pretrain_value import pretrain_value
from jobs.train_policy import train_policy
from tests.support.hosts import Hosts
from tests.support.real import ROLLOUT, STEPS, WITHOUT_VALUE, MakePolicyRecipe, answer, metrics, value_recipe, write_lines

pytestmark = pytest.mark.integration
FirstRun = tuple[dict[str, Any], Path, list[Event]]


# Steps after which what the frozen value sees has risen by several times its spread between steps, whatever was sampled.
LEARNT, EVALUATED = 18, 12


def long_recipe(policy_recipe: MakePolicyRecipe, folder: Path, name: str) -> PolicyRecipe:
    """A recipe that trains long enough for what it learns to be no matter of luck."""
    recipe = policy_recipe(folder, name, steps=LEARNT)
    assert recipe.policy.evaluation is not None
    section = recipe.policy.evaluation.model_copy(update={"every": EVALUATED})
    return recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"evaluation": section})})


@pytest.fixture(scope="module")
def first_run(policy_recipe: MakePolicyRecipe, tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> FirstRun:
    """A whole policy run: its result, its folder, and what was shown meanwhile."""
    folder, events = tmp_path_factory.mktemp("policy"), []
    with hosted(hosts):
        result = train_policy(long_recipe(policy_recipe, folder, "first"), events.append)
    return result, folder / "first", events


def test_value_pretraining_ranks_held_out_pairs_and_seals(value: dict[str, Any]) -> None:
    assert value["rows"] == {"read": 97, "kept": 96, "rejected": {"equal_answers": 1}}
    assert value["pairs"] + value["held_out_pairs"] == 96
    assert value["gvm_pair_accuracy_mean"] >= 0.9
    seal = read_seal(Path(value["value_model"]))
    assert seal.held_out_accuracy["mean"] == value["gvm_pair_accuracy_mean"]
    letters = (Path(value["value_model"]).parent / "dead_letters.jsonl").read_text().splitlines()
    assert json.loads(letters[0])["line"] == 97


@pytest.mark.parametrize("target", [{"type": "mc"}, {"type": "bt", "lam": 1.0}])
def test_every_target_learns_on_two_ranks(tiny_model: Path, pairs: Path, tmp_path: Path, target: dict[str, Any]) -> None:
    learner = {"learning_rate": 3e-3, "dtype": "float32", "token_budget": 512, "ranks": 2, "backend": {"zero_stage": 2}}
    result = pretrain_value(value_recipe(tiny_model, pairs, tmp_path, target=target, learner=learner))
    assert result["gvm_pair_accuracy_mean"] >= 0.9


def labelled(answers: int, pairs: int) -> list[dict[str, Any]]:
    """Answers called good (early letters) or bad (late ones), each to a prompt of its own; then pairs of them."""
    rng = np.random.default_rng(0)
    kinds = [(f"word {i}", bool(i % 2)) for i in range(answers)]
    kinds += [(f"pair {i}", good) for i in range(pairs) for good in (True, False)]
    letters = {True: "abcdef", False: "uvwxyz"}
    return [{"prompt": prompt, "completion": answer(rng, letters[good]), "label": good} for prompt, good in kinds]


def test_answers_in_no_pair_train_a_value_model_beside_pairs(tiny_model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "kto.jsonl", labelled(60, 30))
    learner = {"learning_rate": 3e-3, "dtype": "float32", "token_budget": 512, "ranks": 2, "backend": {"zero_stage": 2}}
    told: list[Event] = []
    recipe = value_recipe(tiny_model, source, tmp_path, target={"type": "bt", "lam": 1.0}, learner=learner)
    result = pretrain_value(recipe, told.append)
    assert result["rows"] == {"read": 120, "kept": 120, "rejected": {}}
    assert result["pairs"] + result["held_out_pairs"] == 30 and result["answers"] + result["held_out_answers"] == 60
    assert result["gvm_pair_accuracy_mean"] >= 0.9 and result["gvm_label_concordance"] >= 0.9
    seal = read_seal(Path(result["value_model"]))
    assert (seal.pairs, seal.answers) == (result["pairs"], result["answers"])
    assert any("30 pairs and 60 answers with labels of their own" in event.text for event in told)


def test_a_value_model_needs_no_pairs(tiny_model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "kto.jsonl", labelled(96, 0))
    result = pretrain_value(value_recipe(tiny_model, source, tmp_path))
    assert result["gvm_label_concordance"] >= 0.9 and "gvm_pair_accuracy_mean" not in result
    seal = read_seal(Path(result["value_model"]))
    assert (seal.pairs, seal.answers, seal.held_out_accuracy) == (0, result["answers"], {})


def test_a_dataset_with_too_many_bad_rows_starts_nothing(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"p {i}", "chosen": "a", "rejected": "" if i % 4 == 0 else "b"} for i in range(20)]
    source = write_lines(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match=r"bad\.jsonl.*5 of 20"):
        pretrain_value(value_recipe(tiny_model, source, tmp_path))


def test_value_eval_repeats_the_sealed_accuracy(value: dict[str, Any], pairs: Path) -> None:
    found = evaluate_value(Path(value["value_model"]), str(pairs), 64, 32)
    assert found["pairs"] == 96
    assert found["accuracy"]["mean"] >= 0.9


def test_policy_training_improves_what_the_frozen_value_sees(first_run: FirstRun) -> None:
    result, folder, events = first_run
    lines = metrics(folder)
    steps = [line for line in lines if "seconds/step" in line]
    assert len(steps) == LEARNT
    assert [line["weights/version"] for line in steps] == list(range(1, LEARNT + 1))
    first, last = (sum(line["value/mean"] for line in part) / 4 for part in (steps[:4], steps[-4:]))
    assert last > first + 0.1
    assert result["gold_after_ci95"][0] <= result["gold_after"] <= result["gold_after_ci95"][1]
    evaluations = [line["step"] for line in lines if "eval/gold" in line]
    assert evaluations == [0, EVALUATED, LEARNT]
    assert all(line["gap/abs_log_prob"] <= 1e-3 for line in steps), "engine and learner disagree in float32"
    assert [event.step for event in events if "seconds/step" in event.metrics] == list(range(1, LEARNT + 1))


def test_result_names_every_figure(first_run: FirstRun) -> None:
    result, folder, _ = first_run
    wanted = {
        "gold_before", "gold_after", "gold_after_ci95", "win_rate", "win_rate_ci95", "kl_per_token", "gvm_pair_accuracy_mean",
        "cut_share_before", "cut_share_after", "cut_share_after_ci95",
        "gvm_pair_accuracy_last", "seconds_total", "seconds_per_step", "peak_memory_gb", "logprob_gap_mean", "seed",
    }  # fmt: skip
    assert wanted <= set(result)
    assert json.loads((folder / "result.json").read_text()) == result
    assert 0 < result["peak_memory_gb"] < 20


def test_the_policy_folder_loads_as_an_ordinary_model(first_run: FirstRun, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(first_run[0]["policy"])
    start = AutoModelForCausalLM.from_pretrained(tiny_model)
    moved = [float((a - b).detach().abs().max()) for a, b in zip(trained.parameters(), start.parameters(), strict=True)]
    assert max(moved) > 1e-3


def test_a_run_repeats_by_its_seed(first_run: FirstRun, policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    recipe = policy_recipe(tmp_path, "again", steps=3, evaluation=None)
    train_policy(recipe)
    steps = [line for line in metrics(first_run[1]) if "seconds/step" in line]
    for a, b in zip(steps, [line for line in metrics(tmp_path / "again") if "seconds/step" in line], strict=False):
        for key in ("answer/tokens", "value/mean", "advantage/std", "loss/policy", "optimizer/grad_norm", "kl/per_token"):
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), (a["step"], key)


def test_inner_epochs_mini_batches_ranks_and_adaptive_kl(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    recipe = policy_recipe(
        tmp_path,
        "inner",
        steps=2,
        learner={"dtype": "float32", "learning_rate": 1e-3, "token_budget": 512, "ranks": 2, "backend": {"zero_stage": 1}},
        ppo={"inner_epochs": 2, "mini_batches": 2},
        kl={"placement": "loss", "control": {"type": "adaptive", "coefficient": 0.1, "target": 1.0, "horizon": 100}},
    )
    train_policy(recipe)
    steps = [line for line in metrics(tmp_path / "inner") if "seconds/step" in line]
    assert steps[1]["kl/beta"] < steps[0]["kl/beta"] == 0.1, "the KL of the first step is 0, so the coefficient falls"
    assert steps[0]["ppo/approx_kl"] > 0, "later mini-batches see a policy that has moved"
    assert steps[0]["loss/skipped_updates"] == 0


def test_streaming_takes_the_steps_that_waiting_for_all_answers_takes(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """Gradients are sums over rows, in whatever order these come. What differs is what advantages are divided by: streaming takes
    the spread of the step before, and the first step waits for its own."""
    settings: dict[str, Any] = {
        "steps": 3,
        "evaluation": None,
        "advantage": {"whitening": "scale"},
        "ppo": {"loss_normaliser": "limit"},
        "scorer": {"dtype": "float32", "rows_per_call": 4},
        "learner": {"dtype": "float32", "learning_rate": 5e-3, "token_budget": 128},
    }
    runs = {}
    for name, streaming in (("streamed", True), ("whole", False)):
        train_policy(policy_recipe(tmp_path, name, streaming=streaming, **settings))
        runs[name] = [line for line in metrics(tmp_path / name) if "seconds/step" in line]
    streamed, whole = runs["streamed"], runs["whole"]
    assert [line["ledger/trained"] for line in streamed] == [16, 32, 48]
    assert all(line["staleness/max"] == 0 for line in streamed)
    same = ("answer/tokens", "value/mean", "advantage/std", "kl/per_token")
    for step, keys in ((0, (*same, "loss/policy", "optimizer/grad_norm")), (1, same)):
        for key in keys:
            assert streamed[step][key] == pytest.approx(whole[step][key], rel=1e-3, abs=1e-6), (step, key)
    undivided = streamed[1]["optimizer/grad_norm"] * streamed[0]["advantage/std"]
    assert undivided == pytest.approx(whole[1]["optimizer/grad_norm"] * whole[1]["advantage/std"], rel=1e-3)
    assert streamed[2]["kl/per_token"] > 0.1, "the policy has moved"


def test_generation_ahead_of_training_stays_within_its_limit(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    recipe = policy_recipe(tmp_path, "ahead", off_policy={"max_staleness": 2})
    result = train_policy(recipe)
    steps = [line for line in metrics(tmp_path / "ahead") if "seconds/step" in line]
    assert len(steps) == STEPS
    assert max(line["staleness/max"] for line in steps) in (1, 2), "generation ran ahead, but no further than allowed"
    assert [line["staleness/dropped_rows"] for line in steps] == [0] * STEPS
    assert all(0 < line["staleness/weight"] <= 2 for line in steps)
    assert steps[-1]["ledger/in_flight"] == 0 and steps[-1]["ledger/trained"] == 16 * STEPS
    assert steps[-1]["kl/per_token"] > 0.1, "the policy has moved"
    assert set(result["idle_share"]) == {"rollouts", "scorers", "learner"}
    assert all(0 < share < 1 for share in result["idle_share"].values())


def test_a_run_with_adapters(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """The job end to end: adapters travel, engine and learner agree at every step, both forms of the policy are saved."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    learner = {"dtype": "float32", "learning_rate": 2e-2, "token_budget": 512}
    recipe = policy_recipe(tmp_path, "lora", steps=3, lora={"rank": 4}, learner=learner, evaluation=None)
    result = train_policy(recipe)
    steps = [line for line in metrics(tmp_path / "lora") if "seconds/step" in line]
    # Rank 4, the sums of inputs and outputs of seven linear layers in two layers, float32.
    assert [line["sync/bytes"] for line in steps] == [4 * 4 * 2 * 1216] * 3
    assert all(line["gap/abs_log_prob"] <= 1e-3 for line in steps), "engine and learner disagree in float32"
    assert steps[-1]["kl/per_token"] > 1e-3, "the policy has moved"
    saved = AutoModelForCausalLM.from_pretrained(result["policy"]).state_dict()
    base = AutoModelForCausalLM.from_pretrained(recipe.model.path)
    merged = PeftModel.from_pretrained(base, result["adapters"]).merge_and_unload().state_dict()
    assert all(torch.allclose(saved[name], merged[name], atol=1e-6) for name in merged)


def test_evaluation_of_a_saved_policy_and_the_report(
    first_run: FirstRun, policy_recipe: MakePolicyRecipe, tmp_path: Path
) -> None:
    result, folder, _ = first_run
    recipe = long_recipe(policy_recipe, tmp_path, "eval")
    found = evaluate_policy(recipe, Path(result["policy"]))
    assert found["gold"] == pytest.approx(result["gold_after"], abs=1e-6)
    assert found["kl_per_token"] == pytest.approx(result["kl_per_token"], abs=1e-4)
    page = Path(write_report(folder)).read_text()
    assert "<svg" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page), "the page must not load anything from elsewhere"


def test_the_command_line_trains_in_a_ray_of_its_own(tiny_model: Path, pairs: Path, tmp_path: Path) -> None:
    """A fresh process, its own Ray: JSON lines, exit code 0, and no process left."""
    recipe = tmp_path / "value.toml"
    recipe.write_text(
        f'[run]\nname = "cli"\noutput_dir = "{tmp_path}"\n[model]\npath = "{tiny_model}"\n[value]\npairs_per_step = 16\n'
        f'[value.data]\nsource = "{pairs}"\nlimit = 48\n[value.learner]\nlearning_rate = 1e-3\n'
    )
    command = [
        sys.executable,
        "-m",
        "jobs.cli.main",
        "value",
        "train",
        str(recipe),
        "--json",
        "--set",
        "value.learner.dtype=float32",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["pairs"] + lines[-1]["held_out_pairs"] == 48
    assert any(line.get("event") == "step" for line in lines)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    assert "already holds a run" in json.loads(refused.stdout.splitlines()[-1])["message"]


def test_a_reward_alone_trains_without_a_value_model(policy_recipe: MakePolicyRecipe, tmp_path: Path) -> None:
    """GRPO on a Python function: no value model is named, loaded or hashed."""
    rollout = ROLLOUT | {"prompts_per_step": 4, "answers_per_prompt": 4}
    recipe = policy_recipe(tmp_path, "grpo", rollout=rollout, **WITHOUT_VALUE)
    result = train_policy(recipe)
    steps = [line for line in metrics(tmp_path / "grpo") if "seconds/step" in line]
    assert len(steps) == STEPS
    assert steps[-1]["reward/letters"] > steps[0]["reward/letters"]
    assert result["gold_after"] > result["gold_before"]
    assert not any(key.startswith("gvm") for key in result)
    write_report(tmp_path / "grpo")
