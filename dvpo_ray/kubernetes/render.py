"""Kubernetes objects from a recipe: its ConfigMap, a RayJob or RayCluster of the size it needs, and what protects its pods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from dvpo_ray.config import Recipe
from dvpo_ray.config.loading import build, recipe_tree, to_toml
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.manifests import GANG, JOB, PART_OF, ROLE, Tree, ray_object
from dvpo_ray.kubernetes.network import network_policies
from dvpo_ray.kubernetes.operator_rules import name_is_a_short_label
from dvpo_ray.kubernetes.pod_rules import image_is_pinned, image_problems
from dvpo_ray.kubernetes.pods import RUNS
from dvpo_ray.kubernetes.ray_objects import JobMaker
from dvpo_ray.kubernetes.refusals import refuse_what_cannot_run
from dvpo_ray.kubernetes.rules import check
from dvpo_ray.kubernetes.sizing import Group, Sizing, size
from dvpo_ray.planning.trainings import trainings


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
    sizing = size(recipe, request.devices, request.gpus_per_node, request.model)
    refuse_what_cannot_run(tree, recipe)
    settings = _for_cluster(tree, recipe, sizing, request.flavour is not Flavour.KUEUE)
    build(kind, settings, f"{origin}, for the cluster")
    documents = list(_documents(recipe, settings, sizing, request))
    ray = next(found for found in map(ray_object, documents) if found is not None)
    for problem, remedy in name_is_a_short_label(ray):
        raise UserInputError(f"{problem}: {remedy}, with --name")
    # An image is looked at by itself: that of the files under k8s/ is a placeholder.
    broken = [finding for finding in check(documents) if finding.rule != image_is_pinned.__name__]
    if broken:
        raise UserInputError(f"{origin}: what it adds to pods breaks rules: " + "; ".join(map(str, broken)))
    return yaml.dump_all(documents, Dumper=_PlainDumper, sort_keys=False, width=120)


def _documents(recipe: Recipe, settings: Tree, sizing: Sizing, request: Request) -> Iterator[Tree]:
    job = request.name or recipe.run.name
    maker = JobMaker(job, recipe, sizing, request.image, request.claim, request.secret)
    elastic = request.flavour is not Flavour.KUEUE and any(group.most > group.pods for group in sizing.groups)
    yield _recipe_map(job, settings)
    if request.flavour is Flavour.INTERACTIVE:
        yield maker.cluster(elastic)
    else:
        yield maker.job(elastic, request.queue if request.flavour is Flavour.KUEUE else None)
    yield _disruption_budget(job, sizing.groups)
    yield from network_policies(job, recipe.kubernetes.egress, elastic)


def _for_cluster(tree: Mapping[str, Any], recipe: Recipe, sizing: Sizing, elastic: bool) -> Tree:
    """The recipe with what only the cluster can say: where runs lie, where Ray is, how many threads a process has."""
    settings: Tree = {name: dict(section) for name, section in tree.items() if name != "kubernetes"}
    settings["run"] = settings.get("run", {}) | {"output_dir": RUNS, "resume": "auto"}
    settings["cluster"] = settings.get("cluster", {}) | {"address": "auto"}
    groups = {group.role: group for group in sizing.groups}
    split = "" not in groups
    if split:
        settings["cluster"]["role_label"] = ROLE
    for name, training in trainings(recipe).items():
        for role in ("rollout", "scorer", "learner"):
            group = groups.get(role) or groups.get("")
            if group is None or not hasattr(training, role):
                continue
            section = dict(settings[name].get(role, {}))
            # A process in a container sees all cores of the node: unless told, it starts a thread for each.
            section.setdefault("cpu_threads", group.cpus // max(1, group.gpus))
            if split:
                section.setdefault("gpu_share", 1.0)
            if role == "scorer" and not elastic:
                # A queue admits a job of one size: there is no room for more scorers.
                section.pop("max_actors", None)
            settings[name][role] = section
    return settings


def _recipe_map(job: str, settings: Tree) -> Tree:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{job}-recipe", "labels": PART_OF | {JOB: job}},
        "data": {"recipe.toml": to_toml(settings).lstrip()},
    }


def _disruption_budget(job: str, groups: tuple[Group, ...]) -> Tree:
    """Head and learner are not moved while they work. Pods without a controller can only be counted, not given in percent."""
    gang = 1 + sum(group.pods for group in groups if group.is_gang)
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": f"{job}-gang", "labels": PART_OF | {JOB: job}},
        "spec": {"minAvailable": gang, "selector": {"matchLabels": {JOB: job, GANG: "true"}}},
    }


class _PlainDumper(yaml.SafeDumper):
    """Long text as a block; what stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_PlainDumper.add_representer(str, _represent_text)
