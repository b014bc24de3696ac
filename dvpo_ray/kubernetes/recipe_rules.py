"""Whether the pods of a job are those that the recipe beside it needs. One function a rule; each yields (what, remedy)."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from dvpo_ray.config.kinds import KINDS, kind_of
from dvpo_ray.config.loading import build
from dvpo_ray.config.recipes import Recipe
from dvpo_ray.errors import ConfigError
from dvpo_ray.kubernetes.manifests import GANG, JOB, ROLE, PodTemplate, RayObject, Tree, items, quantity, tree
from dvpo_ray.kubernetes.operator_rules import Problem
from dvpo_ray.kubernetes.pod_rules import GPU
from dvpo_ray.kubernetes.secrets import reward_tokens
from dvpo_ray.planning.trainings import trainings

RECIPE = "recipe.toml"
AGAIN = "render the job again"


def the_recipe_is_there(ray: RayObject, documents: Sequence[Tree]) -> Iterator[Problem]:
    """What the head mounts must be one that this version takes."""
    text = _recipe_text(ray, documents)
    if text is None:
        return
    try:
        _recipe(text)
    except (ConfigError, ValueError) as error:  # TOML's error is a ValueError
        yield f"its recipe is not valid: {error}", "correct it in the ConfigMap, or render the job again"


def tokens_reach_the_scorers(ray: RayObject, documents: Sequence[Tree]) -> Iterator[Problem]:
    """Scorers ask rewards' services; the driver's environment is not theirs."""
    recipe = _checked(ray, documents)
    if recipe is None:
        return
    for pod in _pods_of(ray, "scorer"):
        container = tree((items(pod.spec.get("containers")) or [{}])[0])
        names = [tree(one).get("name") for one in items(container.get("env"))]
        for path, variable in reward_tokens(recipe).items():
            if variable not in names and not items(container.get("envFrom")):
                yield f"{pod.where} has no {variable}, which {path} names", f"{AGAIN} with --secret"


def gpus_are_enough(ray: RayObject, documents: Sequence[Tree]) -> Iterator[Problem]:
    """A job whose actors need more GPUs than its pods have waits until it is given up."""
    recipe = _checked(ray, documents)
    if recipe is None or recipe.cluster.role_label != ROLE:
        return
    for name, training in trainings(recipe).items():
        models = getattr(training, "trained_models", 1)
        needed = {"learner": models * training.learner.ranks}
        if getattr(training, "evaluation", None) is not None or name == "policy":
            engine: Any = training
            needed |= {
                "scorer": engine.scorer.actors,
                "rollout": engine.rollout.actors * engine.rollout.engine.tensor_parallel,
            }
        for role, count in needed.items():
            found = sum(_gpus(group) for group in ray.workers if tree(group.get("labels")).get(ROLE) == role)
            if found < count:
                yield f"{name} needs {count} GPUs for its {role}, the groups of that role have {found:g}", AGAIN


def the_gang_is_kept_together(ray: RayObject, documents: Sequence[Tree]) -> Iterator[Problem]:
    """What moves pods for maintenance asks the budget; without one it takes a learner rank in the middle of a step."""
    pods = list(ray.pods())
    gang = [pod for pod in pods if pod.pod_labels.get(GANG) == "true"]
    job = gang[0].pod_labels.get(JOB) if gang else None
    if job is None:
        return
    sizes = {str(group.get("groupName")): _replicas(group) for group in ray.workers}
    count = sum(1 if pod.role == "head" else sizes.get(pod.group, 0) for pod in gang)
    budgets = [tree(one.get("spec")) for one in documents if one.get("kind") == "PodDisruptionBudget"]
    if not budgets:
        return
    found = [one.get("minAvailable") for one in budgets if tree(tree(one.get("selector")).get("matchLabels")).get(JOB) == job]
    if found != [count]:
        yield f"its PodDisruptionBudget keeps {found or 'nothing of it'}, head and gang are {count} pods", AGAIN


def _gpus(group: Tree) -> float:
    spec = tree(tree(group.get("template")).get("spec"))
    container = tree((items(spec.get("containers")) or [{}])[0])
    each = quantity(tree(tree(container.get("resources")).get("limits")).get(GPU, 0)) or 0.0
    return each * _replicas(group)


def _replicas(group: Tree) -> int:
    found = group.get("replicas", 1)
    return found if isinstance(found, int) else 0


def _pods_of(ray: RayObject, role: str) -> Iterator[PodTemplate]:
    workers = [pod for pod in ray.pods() if pod.role == "worker"]
    roles = [pod for pod in workers if pod.labels.get(ROLE) == role]
    yield from roles or [pod for pod in workers if ROLE not in pod.labels]


def _recipe_text(ray: RayObject, documents: Sequence[Tree]) -> str | None:
    """The recipe in the ConfigMap that the head mounts, where that is among the documents."""
    names = [
        tree(tree(volume).get("configMap")).get("name")
        for pod in ray.pods()
        if pod.role == "head"
        for volume in items(pod.spec.get("volumes"))
    ]
    for one in documents:
        if one.get("kind") == "ConfigMap" and tree(one.get("metadata")).get("name") in names:
            text = tree(one.get("data")).get(RECIPE)
            return text if isinstance(text, str) else None
    return None


@lru_cache(maxsize=8)
def _recipe(text: str) -> Recipe:
    settings = tomllib.loads(text)
    return build(KINDS[kind_of(settings, RECIPE)], settings, RECIPE)


def _checked(ray: RayObject, documents: Sequence[Tree]) -> Recipe | None:
    text = _recipe_text(ray, documents)
    try:
        return None if text is None else _recipe(text)
    except (ConfigError, ValueError):  # `the_recipe_is_there` says so
        return None


RECIPE_RULES: tuple[Callable[[RayObject, Sequence[Tree]], Iterator[Problem]], ...] = (
    the_recipe_is_there,
    tokens_reach_the_scorers,
    gpus_are_enough,
    the_gang_is_kept_together,
)
