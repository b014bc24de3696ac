"""Kubernetes objects from a recipe: its ConfigMap, a RayJob or RayCluster of the size it needs, and what protects its gang."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from dvpo_ray.config import PipelineRecipe, Recipe
from dvpo_ray.config.loading import build, recipe_tree, to_toml
from dvpo_ray.config.references import data_sources, filled_in, functions, left_behind, models, places, secrets
from dvpo_ray.data.sources import names_a_path
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.manifests import ROLE, Tree, ray_object
from dvpo_ray.kubernetes.operator_rules import QUEUE, name_is_a_short_label
from dvpo_ray.kubernetes.pod_rules import image_problems
from dvpo_ray.kubernetes.pods import (
    GANG,
    JOB,
    PART_OF,
    RECIPES,
    RUNS,
    autoscaler_options,
    head_template,
    submitter_template,
    worker_template,
)
from dvpo_ray.kubernetes.sizing import GIB, SMALLEST_STORE_GIB, Group, groups_of
from dvpo_ray.models.hub import named_for_elsewhere
from dvpo_ray.models.packaged import SMOLLM2

RETRIES = 3
KEPT_AFTER_S = 600


class Flavour(StrEnum):
    """A job that is tried again and goes on, a job that waits in a Kueue queue, or a cluster to work on by hand."""

    RETRY = "retry"
    KUEUE = "kueue"
    INTERACTIVE = "interactive"


def flavour(name: str) -> Flavour:
    """A flavour by its name.

    Raises:
        UserInputError: there is none of that name.
    """
    try:
        return Flavour(name)
    except ValueError as error:
        raise UserInputError(f"unknown flavour '{name}': use one of {', '.join(Flavour)}") from error


@dataclass(frozen=True)
class Request:
    """What a recipe does not say: devices as in ``dvpo plan``, image, names, and the model's folder where planning finds it."""

    devices: str
    image: str
    flavour: Flavour = Flavour.RETRY
    name: str | None = None
    claim: str = "dvpo-runs"
    queue: str = "dvpo"
    secret: str | None = None
    gpus_per_node: int = 8
    model: Path | None = None


def refuse_image(image: str) -> None:
    """Refuse an image that is not named by its digest, as ``image_is_pinned`` would the pods made of it.

    Raises:
        UserInputError: it is not, or its digest is the placeholder of the files under k8s/.
    """
    for problem, remedy in image_problems(image):
        raise UserInputError(f"--image: {problem}: {remedy}")


def render(kind: type[Recipe], path: str, overrides: list[str], request: Request) -> str:
    """All objects of a recipe as YAML.

    Raises:
        UserInputError: the recipe cannot run on a cluster as it is; the message says what to change.
    """
    tree, origin = recipe_tree(path, overrides)
    recipe = build(kind, tree, origin)
    groups = groups_of(recipe, request.devices, request.gpus_per_node, request.model)
    _refuse_secrets(recipe)
    _refuse_local_paths(tree, recipe)
    _refuse_another_start(recipe)
    settings = _for_cluster(tree, recipe, groups)
    if request.flavour is Flavour.KUEUE:
        # A queue admits a job of one size: there is no room for more scorers.
        settings["policy"]["scorer"].pop("max_actors", None)
    build(kind, settings, f"{origin}, for the cluster")
    job = request.name or recipe.run.name
    documents = [_recipe_map(job, settings), _ray(job, recipe, groups, request), _disruption_budget(job, groups)]
    ray = ray_object(documents[1])
    assert ray is not None
    for problem, remedy in name_is_a_short_label(ray):
        raise UserInputError(f"{problem}: {remedy}, with --name")
    return yaml.dump_all(documents, Dumper=_PlainDumper, sort_keys=False, width=120)


def _for_cluster(tree: Mapping[str, Any], recipe: Recipe, groups: list[Group]) -> Tree:
    """The recipe with what only the cluster can say: where runs lie, where Ray is, how many threads a process has."""
    settings: Tree = {name: dict(section) for name, section in tree.items()}
    settings["run"] = settings.get("run", {}) | {"output_dir": RUNS, "resume": "auto"}
    settings["cluster"] = settings.get("cluster", {}) | {"address": "auto"}
    split = len(groups) > 1
    if split:
        settings["cluster"]["role_label"] = ROLE
    policy = settings["policy"]
    for stage in ("rollout", "scorer", "learner"):
        group = next(one for one in groups if one.role in ("", stage))
        section = dict(policy.get(stage, {}))
        # A process in a container sees all cores of the node: unless told, it starts a thread for each.
        section.setdefault("cpu_threads", group.cpus // max(1, group.gpus))
        if split:
            section.setdefault("gpu_share", 1.0)
        policy[stage] = section
    if isinstance(recipe, PipelineRecipe):
        learner = dict(settings["value"].get("learner", {}))
        learner.setdefault("cpu_threads", policy["learner"]["cpu_threads"])
        settings["value"]["learner"] = learner
    return settings


def _recipe_map(job: str, settings: Tree) -> Tree:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{job}-recipe", "labels": PART_OF | {JOB: job}},
        "data": {"recipe.toml": to_toml(settings).lstrip()},
    }


def _ray(job: str, recipe: Recipe, groups: list[Group], request: Request) -> Tree:
    cluster = _cluster(job, groups, request)
    head: Tree = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": job, "labels": PART_OF | {JOB: job}}}
    if request.flavour is Flavour.INTERACTIVE:
        # A cluster that people work on outlives its head; a job that loses its head loses its driver, and is tried again.
        cluster["gcsFaultToleranceOptions"] = {"backend": "rocksdb", "storage": {"size": "1Gi"}}
        return head | {"kind": "RayCluster", "spec": cluster}
    command = "demo" if isinstance(recipe, PipelineRecipe) else "policy train"
    spec: Tree = {
        "entrypoint": f"dvpo {command} {RECIPES}/recipe.toml --resume auto --json",
        "metadata": {"run": recipe.run.name, "command": f"dvpo {command}"},
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT_AFTER_S,
        "backoffLimit": RETRIES,
    }
    if request.flavour is Flavour.KUEUE:
        head["metadata"]["labels"] |= {QUEUE: request.queue}
        spec["suspend"] = True
    spec["submitterPodTemplate"] = submitter_template(job, request.image)
    return head | {"spec": spec | {"rayClusterSpec": cluster}}


def _cluster(job: str, groups: list[Group], request: Request) -> Tree:
    elastic = any(group.most > group.pods for group in groups)
    autoscaling = elastic and request.flavour is not Flavour.KUEUE
    # The dashboard must be reached through the head's service; token and NetworkPolicy say by whom.
    start = {"num-cpus": "0", "dashboard-host": "0.0.0.0", "object-store-memory": str(SMALLEST_STORE_GIB * GIB)}
    cluster: Tree = {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": autoscaling,
    }
    if autoscaling:
        cluster["autoscalerOptions"] = autoscaler_options()
    cluster["headGroupSpec"] = {
        "serviceType": "ClusterIP",
        "rayStartParams": start,
        "template": head_template(job, request.image, request.claim, autoscaling, request.secret),
    }
    cluster["workerGroupSpecs"] = [_group(job, group, request, autoscaling) for group in groups]
    return cluster


def _group(job: str, group: Group, request: Request, autoscaling: bool) -> Tree:
    start = {
        "num-cpus": str(max(group.cpus, group.actors)),
        "object-store-memory": str(group.store_gib * GIB),
    }
    found: Tree = {
        "groupName": group.name,
        "replicas": group.pods,
        "minReplicas": group.pods,
        "maxReplicas": group.most if autoscaling else group.pods,
        "rayStartParams": start,
    }
    if group.role:
        found["labels"] = {ROLE: group.role}
    return found | {"template": worker_template(job, request.image, request.claim, group)}


def _disruption_budget(job: str, groups: list[Group]) -> Tree:
    """Head and learner are not moved while they work. Pods without a controller can only be counted, not given in percent."""
    gang = 1 + sum(group.pods for group in groups if group.is_gang)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"{job}-gang", "labels": PART_OF | {JOB: job}},
        "spec": {"minAvailable": gang, "selector": {"matchLabels": {JOB: job, GANG: "true"}}},
    }


def _refuse_secrets(recipe: Recipe) -> None:
    for path in secrets(recipe):
        raise UserInputError(
            f"{path} would be readable in a ConfigMap: leave it out, put it into a Secret as an environment variable, and name "
            "that Secret with --secret"
        )


def _refuse_local_paths(tree: Mapping[str, Any], recipe: Recipe) -> None:
    """What pods read must be in the image, on the volume, or on a hub; what they write, on the volume or away."""
    for key, said, text in filled_in(tree, recipe):
        if key != "run.output_dir":
            raise UserInputError(
                f"{key} = '{said}' is '{text}' on this machine, pods see the image and the volume: name it as {RUNS}/..."
            )
    read = ((key, text, text) for key, text in (models(recipe) | data_sources(recipe)).items() if _is_local(key, text))
    written = ((key, f"{scheme}{path}", path) for key, scheme, path in places(recipe) if not path.startswith(f"{RUNS}/"))
    for key, text, path in (*read, *written):
        raise UserInputError(
            f"{key} = '{text}' is on this machine, pods see the image and the volume: name it as "
            f"{text.removesuffix(path)}{RUNS}/..., and copy to the volume what is read there"
        )
    for key, text in functions(recipe).items():
        module = left_behind(text)
        if module is not None:
            raise UserInputError(
                f"{key} = '{text}': '{module}' lies in {Path.cwd()}, where pods do not see it: install it in an image made from "
                "this project's"
            )


def _refuse_another_start(recipe: Recipe) -> None:
    """A retry must go on from what its job has checkpointed, not begin again where the recipe says."""
    if recipe.run.resume not in ("auto", "never"):
        raise UserInputError(
            f"run.resume = '{recipe.run.resume}': a job on Kubernetes goes on from the last checkpoint of its own run: leave it "
            f"out; to go on with another run, copy its folder to {RUNS} and give its name as run.name"
        )


def _is_local(key: str, text: str) -> bool:
    if text.startswith((f"{RUNS}/", "package:")) or text == SMOLLM2:
        return False
    is_folder = key in ("model.path", "policy.value_model") or key.endswith((".folder", ".initial"))
    return (is_folder and not named_for_elsewhere(key, text)) or names_a_path(text) or Path(text).exists()


class _PlainDumper(yaml.SafeDumper):
    """Long text as a block; what stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_PlainDumper.add_representer(str, _represent_text)
