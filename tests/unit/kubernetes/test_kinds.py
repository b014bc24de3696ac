"""Every kind of recipe, of small, middling and large models, becomes a job whose pods hold what its trainings need."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from dvpo_ray.config.kinds import KINDS
from dvpo_ray.config.loading import build, to_toml
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.manifests import Tree, quantity, ray_object
from dvpo_ray.kubernetes.render import Flavour, Request, render
from dvpo_ray.kubernetes.sizing import HEADROOM, size
from dvpo_ray.planning.trainings import plan_trainings, trainings
from tests.support.manifests import by_crds, by_rules, by_schema
from tests.support.shapes import model_of

IMAGE = "registry.test/dvpo@sha256:" + "5d" * 32
PAIRS = {"source": "/runs/data/pairs.jsonl", "max_prompt_tokens": 512, "max_answer_tokens": 512}
PROMPTS = {"source": "/runs/data/prompts.jsonl", "max_prompt_tokens": 512}
# Devices, learner ranks of each training and engines, by size; a 70 B reference model alone fills a GPU of 180 GB.
SIZES: dict[str, tuple[str, int, int]] = {
    "0.1B": ("4xL4-24GB", 1, 1),
    "8B": ("16xH100-80GB", 8, 1),
    "70B": ("48xB200-180GB", 32, 4),
}
KIND_NAMES = ("pipeline", "value", "reward", "policy", "dpo")


def recipe(kind: str, size: str) -> Tree:
    """A recipe of a kind for a model of a size."""
    _, ranks, shards = SIZES[size]
    large = {"gradient_checkpointing": True, "backend": {"zero_stage": 3}} if ranks > 1 else {}
    learner = {"ranks": ranks} | large
    engine = {"max_model_len": 1024, "tensor_parallel": shards, "gpu_memory_utilization": 0.9 if ranks > 1 else 0.4}
    rollout = {"max_new_tokens": 512, "engine": engine}
    value = {"data": PAIRS, "pairs_per_step": 64, "learner": learner}
    policy = {"data": PROMPTS, "learner": learner, "rollout": rollout | {"prompts_per_step": 64, "answers_per_prompt": 2}}
    if size == "70B":
        policy |= {
            "advantage": {"type": "grpo", "score": "none"},
            "rewards": {"judge": {"type": "http", "url": "http://judge:80", "token_variable": "JUDGE_TOKEN"}},
        }
    elif kind == "policy":
        policy |= {"value_model": "/runs/value/value-model"}
    evaluation = {"source": "/runs/data/held-out.jsonl"}
    parts: dict[str, Tree] = {
        "pipeline": {"value": value, "policy": policy},
        "value": {"value": value},
        "reward": {"value": value | {"target": {"type": "reward"}}},
        "policy": {"policy": policy},
        "dpo": {"dpo": value | {"evaluation": evaluation, "rollout": rollout}},
    }
    return {"run": {"name": kind}, "model": {"path": "/runs/models/base"}} | parts[kind]


def rendered(tree: Tree, folder: Path, devices: str, **request: Any) -> list[Tree]:
    file = folder / "recipe.toml"
    file.write_text(to_toml(tree))
    return list(yaml.safe_load_all(render(KINDS[tree["run"]["name"]], str(file), [], Request(devices, IMAGE, **request))))


@pytest.mark.parametrize("size_name", SIZES)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_all_kinds_and_sizes_are_sound(kind: str, size_name: str, tmp_path: Path) -> None:
    devices, ranks, _ = SIZES[size_name]
    tree, model = recipe(kind, size_name), model_of(size_name, tmp_path)
    documents = rendered(tree, tmp_path, devices, model=model, secret="tokens")
    assert by_rules(documents) == [] and by_schema(documents) == [] and by_crds(documents) == []
    settings = build(KINDS[kind], tomllib.loads(documents[0]["data"]["recipe.toml"]))
    command = {"pipeline": "demo"}.get(kind, f"{kind} train")
    assert documents[1]["spec"]["entrypoint"] == f"dvpo {command} /etc/dvpo/recipe.toml --resume auto --json"
    ray = ray_object(documents[1])
    assert ray is not None
    roles = [group.get("labels", {}).get("dvpo-ray/role") for group in ray.workers]
    serves = ["scorer", "rollout"] if kind in ("pipeline", "policy", "dpo") else []
    assert roles == ([None] if size_name == "0.1B" else ["learner", *serves])
    if size_name != "0.1B":
        assert ray.workers[0]["replicas"] * 8 == max(8, ranks)
        shares = [training.learner.gpu_share for training in trainings(settings).values()]
        assert shares == [1.0] * len(shares)
    assert all(training.learner.cpu_threads > 0 for training in trainings(settings).values())


def test_a_pod_holds_the_most_that_any_training_needs(tmp_path: Path) -> None:
    """The value model's training is the larger one when the policy has adapters alone."""
    tree = recipe("pipeline", "0.1B")
    tree["policy"] |= {"lora": {}}
    tree["value"]["data"] = PAIRS | {"max_prompt_tokens": 2048, "max_answer_tokens": 2048}
    recipe_, model = build(KINDS["pipeline"], tree), model_of("0.1B", tmp_path)
    found = size(recipe_, "cpu:8:128:bf16", 8, model)
    needs = {plan.name: sum(one.total * one.count for one in plan.processes) for plan in found.plans}
    assert needs["value"] > needs["policy"], "what the policy alone would be given is too little"
    (group,) = found.groups
    held = (group.memory_gib - group.shm_gib) * 2**30
    assert HEADROOM * needs["value"] <= held < HEADROOM * needs["value"] + 2**30


def test_a_value_model_on_more_ranks_than_its_policy_gets_them(tmp_path: Path) -> None:
    tree = recipe("pipeline", "8B")
    tree["value"]["learner"] = tree["value"]["learner"] | {"ranks": 16}
    found = size(build(KINDS["pipeline"], tree), "24xH100-80GB", 8, model_of("8B", tmp_path))
    assert [(one.role, one.pods, one.gpus) for one in found.groups] == [("learner", 2, 8), ("scorer", 1, 1), ("rollout", 1, 1)]


def test_actors_that_do_not_fit_the_gpus_are_refused(tmp_path: Path) -> None:
    model = model_of("0.1B", tmp_path)
    tree = recipe("pipeline", "0.1B")
    tree["value"]["learner"] = {"ranks": 2}
    with pytest.raises(UserInputError, match=r"value: its actors reserve 2 GPUs \(1, 1\), which do not fit into 1"):
        rendered(tree, tmp_path, "1xL4-24GB", model=model)
    large = recipe("policy", "8B")
    large["policy"]["scorer"] = {"max_actors": 12}
    with pytest.raises(UserInputError, match=r"need 21 GPUs \(8 of learner, 12 of scorer, 1 of rollout\), --devices has 16"):
        rendered(large, tmp_path, "16xH100-80GB", model=model_of("8B", tmp_path))
    with pytest.raises(UserInputError, match=r"does not fit: value: a learner rank needs .* shard the model over more learner"):
        huge = recipe("value", "70B")
        huge["value"]["learner"] = huge["value"]["learner"] | {"ranks": 8}
        rendered(huge, tmp_path, "48xH100-80GB", model=model_of("70B", tmp_path))


def test_pairs_are_planned_as_what_they_train(tmp_path: Path) -> None:
    """A value model has no vocabulary-wide output, and its training no engines; that of DPO has them for its evaluation alone."""
    from dvpo_ray.planning import ModelShape, parse_devices
    from dvpo_ray.planning.device_defaults import ROLES, settle

    shape, devices = ModelShape.from_folder(model_of("8B", tmp_path)), parse_devices("16xH100-80GB")
    plans = {}
    for kind in ("value", "dpo"):
        settled, _ = settle(build(KINDS[kind], recipe(kind, "8B")), {role: [devices.device.facts] for role in ROLES}, shape)
        (plans[kind],) = plan_trainings(settled, shape, devices)
    assert [one.name for one in plans["value"].processes] == ["learner rank", "driver and Ray"]
    assert "logits" not in plans["value"].processes[0].parts
    assert {one.name for one in plans["dpo"].processes} >= {"learner rank", "scorer", "engine worker"}
    assert plans["dpo"].checkpoint_bytes == 12 * shape.parameters > plans["value"].checkpoint_bytes
    assert plans["value"].step_s > 0 and plans["dpo"].step_s > 0


def test_interactive_and_queued_flavours_of_pair_trainings(tmp_path: Path) -> None:
    model = model_of("8B", tmp_path)
    for flavour in Flavour:
        documents = rendered(recipe("value", "8B"), tmp_path, "16xH100-80GB", model=model, flavour=flavour)
        assert by_rules(documents) == []
        ray = ray_object(documents[1])
        assert ray is not None
        memory = quantity(ray.workers[0]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
        assert memory is not None and memory > 8 * 16e9, "each rank loads all weights before it keeps its shard"
