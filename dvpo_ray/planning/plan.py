"""The plan of a policy run on given devices: memory of every process, time of every stage, the best split, what to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.planning.devices import Device, DeviceGroup
from dvpo_ray.planning.memory import GB, ProcessMemory, processes
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.simulate import Cluster
from dvpo_ray.planning.times import Efficiency, Workload, decode_step, stage_seconds, step_seconds

WORTH_SAYING = 1.1


@dataclass(frozen=True)
class Split:
    """How many of each process; ``devices`` is what they need together."""

    rollouts: int
    scorers: int
    ranks: int
    devices: int

    @property
    def overrides(self) -> str:
        """The settings that make it so."""
        names = ("rollout.actors", self.rollouts), ("scorer.actors", self.scorers), ("learner.ranks", self.ranks)
        return " ".join(f"--set policy.{key}={value}" for key, value in names)


@dataclass
class Plan:
    """What ``make_plan`` found; seconds and bytes. ``problems`` say why it cannot run, ``advice`` what would make it better."""

    processes: list[ProcessMemory]
    stages: dict[str, float]
    step: float
    shared_devices: bool
    best: Split | None = None
    best_step: float = 0.0
    problems: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    @property
    def bottleneck(self) -> str:
        """The stage that takes longest."""
        return max(self.stages, key=lambda name: self.stages[name])


def with_split(policy: PolicyTraining, split: Split) -> PolicyTraining:
    """The same settings with other numbers of processes."""
    return policy.model_copy(
        update={
            "rollout": policy.rollout.model_copy(update={"actors": split.rollouts}),
            "scorer": policy.scorer.model_copy(update={"actors": split.scorers}),
            "learner": policy.learner.model_copy(update={"ranks": split.ranks}),
        }
    )


def make_plan(
    policy: PolicyTraining,
    shape: ModelShape,
    attention: str,
    group: DeviceGroup,
    work: Workload,
    efficiency: Efficiency | None = None,
) -> Plan:
    """Plan a run. Stages share the devices when there are fewer devices than processes, as on a CPU."""
    efficiency = efficiency or Efficiency()
    device = group.device
    split = _split_of(policy)
    shared = device.is_cpu or split.devices > group.count
    found = processes(policy, shape, attention, device)
    stages = stage_seconds(policy, shape, device, efficiency, work)
    staleness = policy.off_policy.max_staleness
    plan = Plan(found, stages, step_seconds(stages, staleness, shared), shared)
    plan.problems = list(_problems(policy, found, group, shared))
    if not shared:
        plan.best = best_split(policy, shape, attention, group, work, efficiency)
        if plan.best is not None:
            times = stage_seconds(with_split(policy, plan.best), shape, device, efficiency, work)
            plan.best_step = step_seconds(times, staleness, shared_devices=False)
    plan.advice = list(_advice(policy, plan))
    return plan


def best_split(
    policy: PolicyTraining,
    shape: ModelShape,
    attention: str,
    group: DeviceGroup,
    work: Workload,
    efficiency: Efficiency,
) -> Split | None:
    """Devices given one after the other to the stage that gains most; None when even the smallest split does not fit.

    More ranks than answers would idle, and sharded learners need less memory the more there are, so the search begins with
    the fewest ranks that fit.
    """
    shards = policy.rollout.engine.tensor_parallel

    def split(rollouts: int, scorers: int, ranks: int) -> Split:
        return Split(rollouts, scorers, ranks, rollouts * shards + scorers + ranks)

    def seconds(candidate: Split) -> float:
        stages = stage_seconds(with_split(policy, candidate), shape, group.device, efficiency, work)
        return step_seconds(stages, policy.off_policy.max_staleness, shared_devices=False)

    most_ranks = min(group.count - shards - 1, work.rows // policy.ppo.mini_batches)
    fitting = (split(1, 1, n) for n in range(1, most_ranks + 1))
    best = next(
        (c for c in fitting if not list(_too_large(processes(with_split(policy, c), shape, attention, group.device), group))),
        None,
    )
    while best is not None:
        candidates = [
            split(best.rollouts + 1, best.scorers, best.ranks),
            split(best.rollouts, best.scorers + 1, best.ranks),
            split(best.rollouts, best.scorers, best.ranks + 1),
        ]
        allowed = [c for c in candidates if c.devices <= group.count and c.ranks <= most_ranks and c.rollouts <= work.rows]
        faster = [(seconds(c) - seconds(best), c) for c in allowed]
        gain, candidate = min(faster, key=lambda pair: pair[0], default=(0.0, best))
        if gain >= 0:
            return best
        best = candidate
    return None


def cluster_of(policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload) -> Cluster:
    """What ``dvpo_ray.planning.simulate`` plays through."""
    rollout = policy.rollout
    shards = rollout.engine.tensor_parallel
    context = work.prompt + work.answer / 2
    base = decode_step(shape, device, efficiency, 0, context, shards)
    full = decode_step(shape, device, efficiency, rollout.engine.max_num_seqs, context, shards)
    one = Workload(1, work.prompt, work.answer, work.shared)
    prefill = shape.forward_flops(work.prompt - work.shared, work.prompt / 2) / shards / (device.flops * efficiency.forward)
    stages = stage_seconds(policy, shape, device, efficiency, work)
    single = stage_seconds(with_split(policy, Split(1, 1, 1, 0)), shape, device, efficiency, one)
    return Cluster(
        engines=rollout.actors,
        rows_at_once=rollout.engine.max_num_seqs,
        decode_base=base,
        decode_per_row=(full - base) / rollout.engine.max_num_seqs,
        prefill_per_row=prefill,
        scorers=policy.scorer.actors,
        rows_per_call=policy.scorer.rows_per_call,
        score_per_row=single["score"],
        learn=stages["learn"],
        sync=stages["sync"],
        rows_per_step=work.rows,
        answer_mean=work.answer,
        answer_max=rollout.max_new_tokens,
        max_staleness=policy.off_policy.max_staleness,
    )


def _split_of(policy: PolicyTraining) -> Split:
    rollout = policy.rollout
    devices = rollout.actors * rollout.engine.tensor_parallel + policy.scorer.actors + policy.learner.ranks
    return Split(rollout.actors, policy.scorer.actors, policy.learner.ranks, devices)


def _too_large(found: list[ProcessMemory], group: DeviceGroup) -> Iterator[ProcessMemory]:
    yield from (process for process in found if process.on_device and process.total > group.device.memory)


def _problems(policy: PolicyTraining, found: list[ProcessMemory], group: DeviceGroup, shared: bool) -> Iterator[str]:
    """Why the run cannot fit, each with a remedy."""
    for process in _too_large(found, group):
        largest = max(process.parts, key=lambda part: process.parts[part])
        yield (
            f"a {process.name} needs {process.total / GB:.1f} GB, a {group.device.name} holds {group.device.memory / GB:.0f} GB; "
            f"most is for {largest}: {_remedy(process.name, largest, policy)}"
        )
    needed = sum(process.total * process.count for process in found if process.on_device)
    if shared and needed > group.count * group.device.memory:
        yield (
            f"all processes together need {needed / GB:.1f} GB, {group.count} x {group.device.name} hold "
            f"{group.count * group.device.memory / GB:.0f} GB: add devices, or lower learner.token_budget and "
            "rollout.engine.max_num_seqs"
        )


def _remedy(process: str, part: str, policy: PolicyTraining) -> str:
    if process == "learner rank" and part == "activations":
        return "lower learner.token_budget or set learner.gradient_checkpointing = true"
    if process == "learner rank":
        return f"raise learner.zero_stage (now {policy.learner.zero_stage}) and learner.ranks (now {policy.learner.ranks})"
    if process == "engine worker":
        return "raise rollout.engine.tensor_parallel, or lower rollout.engine.max_num_seqs"
    return "take devices with more memory, or a smaller model"


def _advice(policy: PolicyTraining, plan: Plan) -> Iterator[str]:
    """What would make the run faster by more than a tenth."""
    if plan.shared_devices:
        yield "stages share the devices and follow one another: running ahead (off_policy.max_staleness) gains nothing here"
        return
    overlapped = step_seconds(plan.stages, 1, shared_devices=False)
    if policy.off_policy.max_staleness == 0 and plan.step > WORTH_SAYING * overlapped:
        yield f"stages wait for one another: --set policy.off_policy.max_staleness=1 takes a step to about {overlapped:.1f} s"
    if plan.best is not None and plan.step > WORTH_SAYING * plan.best_step:
        yield f"another split takes a step to about {plan.best_step:.1f} s: {plan.best.overrides}"
