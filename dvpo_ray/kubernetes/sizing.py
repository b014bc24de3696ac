"""Which pods a recipe needs and how large they are, from its plan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dvpo_ray.config import PipelineRecipe, PolicyRecipe, Recipe
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.errors import UserInputError
from dvpo_ray.models.packaged import config_folder
from dvpo_ray.planning import ModelShape, make_plan, parse_devices
from dvpo_ray.planning.device_defaults import ROLES, Choices, settle
from dvpo_ray.planning.devices import DeviceGroup
from dvpo_ray.planning.memory import CPU_BASE, ProcessMemory, element_size
from dvpo_ray.planning.plan import Plan
from dvpo_ray.planning.times import Workload

GIB = 2**30
# What a plan does not foresee: fragments, the page cache of files just read, a second copy of a tensor.
HEADROOM = 1.25
CPUS_PER_GPU = 6
HEAD_CPUS = 2
HEAD_MEMORY_GIB = 6
# Answers and scores of the steps under way are small beside the buckets of weights that pass through the store.
OBJECT_STORE_BUCKETS = 3
SMALLEST_STORE_GIB = 1
# What vLLM and NCCL keep in /dev/shm besides Ray's object store.
ENGINE_SHM_GIB = 1
MODELS = ("weights", "value model", "reference model", "reward models")
HOST_NAMES = {"learner rank": "learner", "critic rank": "learner", "scorer": "scorer", "engine worker": "engine"}


@dataclass(frozen=True)
class Group:
    """Pods of one kind. ``role`` is what their label says, empty where all actors share them; sizes are those of one pod.

    ``most`` is how many the autoscaler may start, ``actors`` how many actors a pod must have room for.
    """

    name: str
    role: str
    pods: int
    most: int
    actors: int
    cpus: int
    memory_gib: int
    gpus: int
    store_gib: int

    @property
    def shm_gib(self) -> int:
        """Size of /dev/shm."""
        return self.store_gib + ENGINE_SHM_GIB

    @property
    def is_gang(self) -> bool:
        """Whether losing one of its pods costs all of them their work."""
        return self.role in ("", "learner")


def groups_of(recipe: Recipe, devices: str, gpus_per_node: int, model: Path | None) -> list[Group]:
    """The worker groups of a recipe: one when all fits a node, else one a stage.

    Raises:
        UserInputError: the recipe has no policy training, does not fit the devices, or does not divide into nodes.
    """
    if not isinstance(recipe, PolicyRecipe | PipelineRecipe):
        raise UserInputError("a training on pairs alone is not rendered: take a recipe with [policy]")
    found = parse_devices(devices)
    shape = ModelShape.from_folder(config_folder(recipe.model, model))
    made: tuple[PolicyRecipe | PipelineRecipe, Choices] = settle(recipe, {role: [found.device.facts] for role in ROLES}, shape)
    recipe = made[0]
    policy = recipe.policy
    plan = make_plan(policy, shape, recipe.model.attention, found, Workload.of(policy))
    if plan.problems:
        raise UserInputError("this recipe does not fit: " + "; ".join(plan.problems))
    store = max(SMALLEST_STORE_GIB, math.ceil(OBJECT_STORE_BUCKETS * policy.transfer.bucket_mib / 1024))
    if found.device.is_cpu:
        return [_cpu_group(policy, plan, found, store)]
    host = {one.name: _host_bytes(one, policy, shape) for one in plan.processes if one.name in HOST_NAMES}
    if found.count <= gpus_per_node:
        return [_shared_group(policy, host, plan, found, store)]
    return _stage_groups(policy, host, gpus_per_node, store)


def _most_scorers(policy: PolicyTraining) -> int:
    return policy.scorer.max_actors or policy.scorer.actors


def _actors(policy: PolicyTraining) -> int:
    return policy.rollout.actors + _most_scorers(policy) + policy.trained_models * policy.learner.ranks


def _gib(data: float, store: int) -> int:
    """Memory of a pod: what its processes need, and /dev/shm, which counts as well."""
    return math.ceil(HEADROOM * data / GIB) + store + ENGINE_SHM_GIB


def _host_bytes(process: ProcessMemory, policy: PolicyTraining, shape: ModelShape) -> float:
    """Host memory of a process on a GPU: its libraries, and its models while they are loaded. A learner rank loads the whole
    model before it keeps its shard."""
    models = sum(size for part, size in process.parts.items() if part in MODELS)
    if HOST_NAMES[process.name] == "learner":
        models = shape.parameters * element_size(policy.learner.dtype)
    return CPU_BASE[HOST_NAMES[process.name]] + models


def _cpu_group(policy: PolicyTraining, plan: Plan, devices: DeviceGroup, store: int) -> Group:
    memory = _gib(sum(process.total * process.count for process in plan.processes), store)
    if memory * GIB > devices.device.memory:
        raise UserInputError(
            f"the pod needs {memory} GiB (a quarter more than planned, and /dev/shm), {devices.device.name} of "
            f"{devices.device.memory / 1e9:.0f} GB has less: name a machine with more memory in --devices"
        )
    return Group("worker", "", 1, 1, _actors(policy), devices.device.cores, memory, 0, store)


def _shared_group(policy: PolicyTraining, host: dict[str, float], plan: Plan, devices: DeviceGroup, store: int) -> Group:
    data = sum(host[process.name] * process.count for process in plan.processes if process.name in host)
    data += CPU_BASE["engine front"] * policy.rollout.actors
    cpus = max(CPUS_PER_GPU * devices.count, _actors(policy))
    return Group("worker", "", 1, 1, _actors(policy), cpus, _gib(data, store), devices.count, store)


def _stage_groups(policy: PolicyTraining, host: dict[str, float], gpus_per_node: int, store: int) -> list[Group]:
    """A pod for every engine and every scorer, and the learner on as few nodes as its ranks fill."""
    shards, ranks = policy.rollout.engine.tensor_parallel, policy.trained_models * policy.learner.ranks
    if shards > gpus_per_node:
        raise UserInputError(
            f"rollout.engine.tensor_parallel ({shards}) is more than the {gpus_per_node} GPUs of a node (--gpus-per-node)"
        )
    per_pod = min(ranks, gpus_per_node)
    if ranks % per_pod:
        raise UserInputError(
            f"learner.ranks ({policy.learner.ranks}{', and as many of the critic' if policy.trained_models > 1 else ''}) do not "
            f"fill nodes of {gpus_per_node} GPUs: take a multiple, or another --gpus-per-node"
        )
    engine = host["engine worker"] * shards + CPU_BASE["engine front"]
    pods = ranks // per_pod
    engines, scorers = policy.rollout.actors, policy.scorer.actors

    def group(role: str, pods: int, most: int, actors: int, gpus: int, data: float) -> Group:
        return Group(role, role, pods, most, actors, CPUS_PER_GPU * gpus, _gib(data, store), gpus, store)

    return [
        group("learner", pods, pods, per_pod, per_pod, max(host["learner rank"], host.get("critic rank", 0.0)) * per_pod),
        group("scorer", scorers, _most_scorers(policy), 1, 1, host["scorer"]),
        group("rollout", engines, engines, 1, shards, engine),
    ]
