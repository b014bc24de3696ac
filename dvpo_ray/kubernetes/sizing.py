"""Which pods a recipe needs and how large they are, from the plans of all its trainings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvpo_ray.config import Recipe
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.config.recipes import PolicyTraining, ValueTraining
from dvpo_ray.errors import UserInputError
from dvpo_ray.models.packaged import config_folder
from dvpo_ray.planning import ModelShape, parse_devices
from dvpo_ray.planning.device_defaults import ROLES, settle
from dvpo_ray.planning.devices import DeviceGroup
from dvpo_ray.planning.memory import CPU_BASE, ProcessMemory, element_size
from dvpo_ray.planning.trainings import TrainingPlan, plan_trainings

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
# What a policy's learner reserves of a GPU (actors.learner.gang.RestartableGang.gpu_share).
ONLY_RANK_SHARE = 0.3


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


@dataclass(frozen=True)
class Sizing:
    """The worker groups of a recipe, its plans, and the name of the device they are for: one group when all fits a node, else
    one a role."""

    groups: tuple[Group, ...]
    plans: tuple[TrainingPlan, ...]
    device: str


def size(recipe: Recipe, devices: str, gpus_per_node: int, model: Path | None) -> Sizing:
    """Plan every training of a recipe, and give each role what the most demanding one needs.

    Raises:
        UserInputError: the recipe does not fit the devices, or does not divide into nodes.
    """
    found = parse_devices(devices)
    shape = ModelShape.from_folder(config_folder(recipe.model, model))
    recipe, _ = settle(recipe, {role: [found.device.facts] for role in ROLES}, shape)
    plans = plan_trainings(recipe, shape, found)
    problems = [problem for plan in plans for problem in plan.problems]
    if problems:
        raise UserInputError("this recipe does not fit: " + "; ".join(problems))
    sizes = _Sizes(plans, shape, found)
    if found.device.is_cpu:
        groups = [sizes.cpu_group()]
    elif found.count <= gpus_per_node:
        groups = [sizes.shared_group()]
    else:
        groups = sizes.role_groups(gpus_per_node)
    return Sizing(tuple(groups), tuple(plans), found.device.name)


class _Sizes:
    """The most that any of a recipe's trainings needs: they run one after the other."""

    def __init__(self, plans: Sequence[TrainingPlan], shape: ModelShape, devices: DeviceGroup) -> None:
        self._plans = plans
        self._devices = devices
        sections = [plan.training.transfer for plan in plans if isinstance(plan.training, PolicyTraining | DpoTraining)]
        buckets = (OBJECT_STORE_BUCKETS * section.bucket_mib / 1024 for section in sections)
        self._store = math.ceil(max([SMALLEST_STORE_GIB, *buckets]))
        self._host = [{process.name: _host_bytes(process, plan, shape) for process in plan.processes} for plan in plans]

    def cpu_group(self) -> Group:
        """One pod on a machine without GPUs."""
        device = self._devices.device
        memory = self._gib(max(sum(one.total * one.count for one in plan.processes) for plan in self._plans))
        if memory * GIB > device.memory:
            raise UserInputError(
                f"the pod needs {memory} GiB (a quarter more than planned, and /dev/shm), {device.name} of "
                f"{device.memory / 1e9:.0f} GB has less: name a machine with more memory in --devices"
            )
        return Group("worker", "", 1, 1, self._actors(), device.cores, memory, 0, self._store)

    def shared_group(self) -> Group:
        """One pod with all GPUs."""
        for plan in self._plans:
            _check_shares(plan, self._devices.count)
        data = max(
            sum(host[process.name] * process.count for process in plan.processes)
            for plan, host in zip(self._plans, self._host, strict=True)
        )
        cpus = max(CPUS_PER_GPU * self._devices.count, self._actors())
        return Group("worker", "", 1, 1, self._actors(), cpus, self._gib(data), self._devices.count, self._store)

    def role_groups(self, gpus_per_node: int) -> list[Group]:
        """A pod for every engine and every scorer, and the learner on as few nodes as its ranks fill."""
        groups = [self._learner_group(gpus_per_node), *self._serving_groups(gpus_per_node)]
        needed = sum(group.most * group.gpus for group in groups)
        if needed > self._devices.count:
            each = ", ".join(f"{group.most * group.gpus} of {group.name}" for group in groups)
            raise UserInputError(
                f"the pods need {needed} GPUs ({each}), --devices has {self._devices.count}: name as many, or lower "
                "learner.ranks, rollout.actors, or scorer.actors and max_actors"
            )
        return groups

    def _learner_group(self, gpus_per_node: int) -> Group:
        largest = max(self._plans, key=lambda plan: plan.ranks)
        per_pod = min(largest.ranks, gpus_per_node)
        if largest.ranks % per_pod:
            more = ", and as many of the critic" if largest.ranks > largest.training.learner.ranks else ""
            raise UserInputError(
                f"{largest.name}.learner.ranks ({largest.training.learner.ranks}{more}) do not fill nodes of {gpus_per_node} "
                "GPUs: take a multiple, or another --gpus-per-node"
            )
        data = max(
            max(host[name] for name in host if name.endswith("rank")) * min(plan.ranks, per_pod)
            for plan, host in zip(self._plans, self._host, strict=True)
        )
        return self._group("learner", largest.ranks // per_pod, largest.ranks // per_pod, per_pod, per_pod, data)

    def _serving_groups(self, gpus_per_node: int) -> Iterator[Group]:
        for plan, host in zip(self._plans, self._host, strict=True):
            training = plan.training
            if not plan.generates or not isinstance(training, PolicyTraining | DpoTraining):
                continue
            shards = training.rollout.engine.tensor_parallel
            if shards > gpus_per_node:
                raise UserInputError(
                    f"rollout.engine.tensor_parallel ({shards}) is more than the {gpus_per_node} GPUs of a node (--gpus-per-node)"
                )
            engine = host["engine worker"] * shards + CPU_BASE["engine front"]
            yield self._group("scorer", training.scorer.actors, _most_scorers(training), 1, 1, host["scorer"])
            yield self._group("rollout", training.rollout.actors, training.rollout.actors, 1, shards, engine)

    def _group(self, role: str, pods: int, most: int, actors: int, gpus: int, data: float) -> Group:
        return Group(role, role, pods, most, actors, CPUS_PER_GPU * gpus, self._gib(data), gpus, self._store)

    def _actors(self) -> int:
        return max(len(_gpu_shares(plan)) for plan in self._plans)

    def _gib(self, data: float) -> int:
        """Memory of a pod: what its processes need, and /dev/shm, which counts as well."""
        return math.ceil(HEADROOM * data / GIB) + self._store + ENGINE_SHM_GIB


def _most_scorers(training: PolicyTraining | DpoTraining) -> int:
    return training.scorer.max_actors or training.scorer.actors


def _host_bytes(process: ProcessMemory, plan: TrainingPlan, shape: ModelShape) -> float:
    """Host memory of a process on a GPU: its libraries, and its models while they are loaded. A learner rank loads the whole
    model before it keeps its shard. The driver's is on the head."""
    if process.name == "driver and Ray":
        return 0.0
    if process.name not in HOST_NAMES:
        return process.total
    models = sum(amount for part, amount in process.parts.items() if part in MODELS)
    if HOST_NAMES[process.name] == "learner":
        models = shape.parameters * element_size(plan.training.learner.dtype)
    return CPU_BASE[HOST_NAMES[process.name]] + models


def _gpu_shares(plan: TrainingPlan) -> list[float]:
    """What of a GPU each actor of a training reserves, as pools and gangs ask for it."""
    training: Any = plan.training
    learner = training.learner
    share = 1.0 if isinstance(training, ValueTraining) else learner.gpu_share or (1.0 if learner.ranks > 1 else ONLY_RANK_SHARE)
    found = [share] * plan.ranks
    if plan.generates:
        rollout, shards = training.rollout, training.rollout.engine.tensor_parallel
        engine = float(shards) if shards > 1 else rollout.gpu_share or rollout.engine.gpu_memory_utilization
        found += [engine] * rollout.actors + [training.scorer.gpu_share] * _most_scorers(training)
    return found


def _check_shares(plan: TrainingPlan, gpus: int) -> None:
    """Refuse a training whose actors would wait for a GPU for ever."""
    free, shares = [1.0] * gpus, sorted(_gpu_shares(plan), reverse=True)
    for share in shares:
        whole = math.ceil(share)
        # Several whole ones, or the first with enough room.
        fits = [i for i, room in enumerate(free) if room >= min(share, 1.0) - 1e-9][:whole]
        if len(fits) < whole:
            each = ", ".join(f"{one:g}" for one in shares)
            raise UserInputError(
                f"{plan.name}: its actors reserve {sum(shares):g} GPUs ({each}), which do not fit into {gpus}: name more in "
                "--devices, or lower gpu_share of learner, rollout or scorer, or how many there are"
            )
        for i in fits:
            free[i] -= min(share, 1.0)
