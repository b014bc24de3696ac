"""Jobs from recipes: their size, what the cluster adds to the recipe, and what is refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from dvpo_ray.config import PipelineRecipe, PolicyRecipe
from dvpo_ray.config.loading import build, recipe_tree, to_toml
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.manifests import Tree, quantity, read_manifests
from dvpo_ray.kubernetes.render import Flavour, Request, render
from dvpo_ray.kubernetes.sizing import size
from jobs.cli.main import app
from scripts.k8s_overlays import ROOT

IMAGE = "registry.test/dvpo@sha256:" + "5d" * 32
LARGE = str(ROOT / "k8s" / "overlays" / "gpu-large" / "recipe.toml")
MODEL = ROOT / "k8s" / "overlays" / "gpu-large" / "model"
EIGHT_B = Request("16xH100-80GB", IMAGE, model=MODEL)


def rendered(kind: Any, recipe: str, request: Request, *overrides: str) -> tuple[Tree, Tree, Tree]:
    """(recipe in the ConfigMap, Ray object, disruption budget)."""
    recipe_map, ray, budget, *_ = yaml.load_all(render(kind, recipe, list(overrides), request), Loader=yaml.CSafeLoader)
    return tomllib.loads(recipe_map["data"]["recipe.toml"]), ray, budget


def test_the_cluster_adds_what_only_it_knows_and_keeps_the_rest() -> None:
    recipe, job, _ = rendered(PipelineRecipe, "demo", Request("cpu:2:16:bf16", IMAGE), "policy.steps=7")
    settings = build(PipelineRecipe, recipe)
    assert settings.policy.steps == 7
    assert str(settings.run.output_dir) == "/runs" and settings.run.resume == "auto"
    assert settings.cluster.address == "auto" and settings.cluster.role_label is None
    threads = (settings.policy.rollout, settings.policy.scorer, settings.policy.learner, settings.value.learner)
    assert [section.cpu_threads for section in threads] == [2, 2, 2, 2], "a container sees the cores of its node"
    asked = build(PipelineRecipe, recipe_tree("demo")[0])
    assert settings.policy.kl == asked.policy.kl and settings.value.target == asked.value.target
    assert job["spec"]["entrypoint"] == "dvpo demo /etc/dvpo/recipe.toml --resume auto --json"
    own = rendered(PipelineRecipe, "demo", Request("cpu:2:16:bf16", IMAGE), "policy.scorer.cpu_threads=1")[0]
    assert own["policy"]["scorer"]["cpu_threads"] == 1, "what the recipe says stands"


def test_a_pod_holds_what_the_plan_says_and_a_quarter_more() -> None:
    """The plan of `dvpo plan demo --devices cpu:2:16` sums up to 9.3 GB."""
    _, job, budget = rendered(PipelineRecipe, "demo", Request("cpu:2:16:bf16", IMAGE))
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    memory = quantity(limits["memory"])
    shm = quantity(group["template"]["spec"]["volumes"][1]["emptyDir"]["sizeLimit"])
    assert memory is not None and shm is not None
    assert 1.25 * 9.2e9 < memory - shm < 1.25 * 9.3e9 + 2**30
    assert shm > int(group["rayStartParams"]["object-store-memory"])
    assert limits["cpu"] == "2" and group["rayStartParams"]["num-cpus"] == "3", "three actors of one logical CPU each"
    assert budget["spec"]["minAvailable"] == 2


def test_large_recipes_get_a_group_a_stage() -> None:
    recipe, job, budget = rendered(PolicyRecipe, LARGE, EIGHT_B)
    assert recipe["cluster"]["role_label"] == "dvpo-ray/role"
    assert [recipe["policy"][stage]["gpu_share"] for stage in ("rollout", "scorer", "learner")] == [1.0, 1.0, 1.0]
    groups = {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert {name: group["labels"]["dvpo-ray/role"] for name, group in groups.items()} == {name: name for name in groups}
    sizes = {name: (group["replicas"], group["maxReplicas"]) for name, group in groups.items()}
    assert sizes == {"learner": (1, 1), "scorer": (2, 4), "rollout": (4, 4)}
    tolerant = {name: _tolerated(group) for name, group in groups.items()}
    gpu, preemptible = "nvidia.com/gpu", "dvpo-ray/preemptible"
    assert tolerant == {"learner": {gpu}, "scorer": {gpu, preemptible}, "rollout": {gpu, preemptible}}
    assert budget["spec"]["minAvailable"] == 2, "the head and the learner's pod"
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True


def _tolerated(group: Tree) -> set[str]:
    return {one["key"] for one in group["template"]["spec"]["tolerations"]}


def test_learner_ranks_fill_their_nodes_and_load_whole_models() -> None:
    groups = size(build(PolicyRecipe, recipe_tree(LARGE, ["policy.learner.ranks=16"])[0]), "32xH100-80GB", 8, MODEL).groups
    learner = groups[0]
    assert (learner.pods, learner.gpus, learner.actors) == (2, 8, 8)
    assert learner.memory_gib > 8 * 16, "each of 8 ranks loads 16 GB of weights before it keeps its shard"
    with pytest.raises(UserInputError, match=r"learner\.ranks \(12\).*multiple"):
        size(build(PolicyRecipe, recipe_tree(LARGE, ["policy.learner.ranks=12"])[0]), "32xH100-80GB", 8, MODEL)


def test_flavours() -> None:
    recipe, queued, _ = rendered(PolicyRecipe, LARGE, Request("16xH100-80GB", IMAGE, Flavour.KUEUE, queue="team", model=MODEL))
    assert queued["spec"]["suspend"] is True and queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert queued["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False
    assert "max_actors" not in recipe["policy"]["scorer"], "a queue admits one size"
    _, cluster, _ = rendered(PolicyRecipe, LARGE, Request("16xH100-80GB", IMAGE, Flavour.INTERACTIVE, model=MODEL))
    assert cluster["kind"] == "RayCluster" and cluster["spec"]["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert [group["replicas"] for group in cluster["spec"]["workerGroupSpecs"]] == [1, 2, 4]


@pytest.mark.parametrize(
    ("overrides", "request_", "message"),
    [
        (["tracking.wandb_project=p", "tracking.wandb_api_key=k"], EIGHT_B, r"wandb_api_key would be readable.*--secret"),
        (["policy.data.source=prompts.jsonl"], EIGHT_B, r"policy\.data\.source = 'prompts\.jsonl'.*on this machine"),
        (["policy.value_model=runs/value"], EIGHT_B, r"policy\.value_model"),
        (["policy.data.source=~/prompts"], EIGHT_B, r"policy\.data\.source = '~/prompts' is '/.* on this machine, pods"),
        (["policy.data.source=prompts.CSV"], EIGHT_B, r"policy\.data\.source = 'prompts\.CSV'.*on this machine"),
        (["policy.rewards={x={type='model', folder='runs/reward'}}"], EIGHT_B, r"policy\.rewards\.x\.folder"),
        (["run.name=My.run"], EIGHT_B, r"'My\.run'.*--name"),
        (["run.resume=/runs/x/checkpoints/step-00000001"], EIGHT_B, r"run\.resume = .* goes on from the last checkpoint"),
        (["policy.checkpoint.copy_to=/away"], EIGHT_B, r"policy\.checkpoint\.copy_to = '/away' .* name it as /runs/"),
        (["tracking.mlflow_uri=sqlite:///mlflow.db"], EIGHT_B, r"mlflow_uri = 'sqlite:///mlflow\.db' .* as sqlite:////runs/"),
        ([], Request("4xL4-24GB", IMAGE, model=MODEL), "does not fit"),
        (["policy.rollout.engine.tensor_parallel=4"], Request("40xH100-80GB", IMAGE, gpus_per_node=2, model=MODEL), "2 GPUs of"),
    ],
)
def test_what_cannot_run_on_a_cluster_is_refused(overrides: list[str], request_: Request, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        render(PolicyRecipe, LARGE, overrides, request_)


def test_a_function_of_ones_own_must_be_in_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reward = ['policy.rewards.mine={function = "scores:good"}', "policy.checkpoint.copy_to=s3://bucket/run"]
    assert "scores:good" in render(PolicyRecipe, LARGE, reward, EIGHT_B), "installed in the image, as far as one can tell here"
    (tmp_path / "scores.py").touch()
    with pytest.raises(UserInputError, match=r"'scores:good': 'scores\.py' lies in .*, where pods do not see it"):
        render(PolicyRecipe, LARGE, reward, EIGHT_B)


def test_a_small_machine_is_refused() -> None:
    with pytest.raises(UserInputError, match="name a machine with more memory"):
        render(PipelineRecipe, "demo", [], Request("cpu:2:10:bf16", IMAGE))
    with pytest.raises(UserInputError, match="name a machine with more memory"):
        render(PipelineRecipe, "demo", [], Request("cpu:2:16", IMAGE))


def test_trackers_get_their_secret_from_kubernetes() -> None:
    _, job, _ = rendered(PolicyRecipe, LARGE, Request("16xH100-80GB", IMAGE, secret="wandb", model=MODEL))
    cluster = job["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["envFrom"] == [{"secretRef": {"name": "wandb"}}]
    assert all("envFrom" not in group["template"]["spec"]["containers"][0] for group in cluster["workerGroupSpecs"])


def test_toml_that_is_written_is_read_again() -> None:
    for name in ("demo", LARGE):
        tree = recipe_tree(name)[0]
        assert tomllib.loads(to_toml(tree)) == tree


def test_the_commands(tmp_path: Path) -> None:
    command = ["k8s", "render", "demo", "--devices", "cpu:2:16:bf16", "--image"]
    done = CliRunner().invoke(app, [*command, IMAGE])
    assert done.exit_code == 0, done.output
    file = tmp_path / "job.yaml"
    file.write_text(done.output)
    checked = CliRunner().invoke(app, ["k8s", "check", str(file), "--json"])
    assert checked.exit_code == 0 and json.loads(checked.output) == {"documents": 4, "findings": 0}
    file.write_text(done.output.replace("runAsUser: 1000", "runAsUser: 0"))
    refused = CliRunner().invoke(app, ["k8s", "check", str(file)])
    assert refused.exit_code == 2 and f"{file}: RayJob demo, head: container ray-head may run as root" in refused.output
    for image, why in ((IMAGE.replace("5d", "00"), "is a placeholder"), ("registry.test/dvpo:latest", "is not pinned")):
        unpinned = CliRunner().invoke(app, [*command, image])
        assert unpinned.exit_code == 2 and "--image: image" in unpinned.output and why in unpinned.output
    bad = CliRunner().invoke(app, [*command, IMAGE, "--flavour", "cron"])
    assert bad.exit_code == 2 and "use one of retry, kueue, interactive" in bad.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: RayJob\nkind: RayCluster\n", "key 'kind' stands more than once"),
        ("kind: [", "not valid YAML"),
        ("- 1\n", "document 1 has no kind"),
        ("kind: List\nitems: [{kind: Pod}, 1]\n", "document 1, item 2, has no kind"),
        ("kind: Pod\nsince: 2026-13-45\n", "not valid YAML: month must be"),
        ("kind: " + 2000 * "[", "not valid YAML"),
        ("", "holds no manifest"),
    ],
)
def test_files_that_are_no_manifests_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(UserInputError, match=message) as caught:
        read_manifests(file)
    assert str(file) in str(caught.value)
    with pytest.raises(UserInputError, match="cannot read"):
        read_manifests(tmp_path / "nowhere.yaml")


def test_what_kubectl_and_editors_write_is_read(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "kind: List\nitems:\n- {kind: RayJob}\n- {kind: ConfigMap}\n---\nkind: Pod\nx: &x {a: 1, b: 1}\ny: {<<: *x, a: 2}\n"
    )
    found = read_manifests(file)
    assert [one["kind"] for one in found] == ["RayJob", "ConfigMap", "Pod"]
    assert found[2]["y"] == {"a": 2, "b": 1}
