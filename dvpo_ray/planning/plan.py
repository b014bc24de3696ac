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
FINEST = 64


@dataclass(frozen=True)
class Split:
    """How many of each process, each on devices of its own; ``devices`` is what they need together."""

    rollouts: int
    scorers: int
    ranks: int
    devices: int

    @property
    def settings(self) -> dict[str, int]:
        """The settings of a policy training that make it so, by their dotted paths."""
        counts = {"rollout.actors": self.rollouts, "scorer.actors": self.scorers, "learner.ranks": self.ranks}
        return counts | {f"{stage}.gpu_share": 1 for stage in ("rollout", "scorer", "learner")}

    @property
    def overrides(self) -> str:
        """The same as options of the command line."""
        return " ".join(f"--set policy.{key}={value}" for key, value in self.settings.items())


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
    """The fastest of all splits; None when even the smallest does not fit.

    Beyond 64 devices, engines and scorers are tried in steps of a 64th of them. Ranks take what is left, up to one for every
    answer: more of them are never slower, and shards are smaller.
    """
    shards = policy.rollout.engine.tensor_parallel
    grain = max(1, group.count // FINEST)
    best: tuple[float, Split] | None = None
    for rollouts in _tried(min(work.rows, group.count // shards), grain):
        for scorers in _tried(min(work.rows, group.count - rollouts * shards), grain):
            left = group.count - rollouts * shards - scorers
            ranks = min(left // policy.trained_models, work.rows // policy.ppo.mini_batches)
            if ranks < 1:
                continue
            candidate = Split(rollouts, scorers, ranks, rollouts * shards + scorers + policy.trained_models * ranks)
            changed = with_split(policy, candidate)
            stages = stage_seconds(changed, shape, group.device, efficiency, work)
            seconds = step_seconds(stages, policy.off_policy.max_staleness, shared_devices=False)
            if best is not None and seconds >= best[0]:
                continue
            if not list(_too_large(changed, processes(changed, shape, attention, group.device), group)):
                best = seconds, candidate
    return None if best is None else best[1]


def _tried(most: int, grain: int) -> list[int]:
    """1, then multiples of ``grain`` up to ``most``."""
    return [] if most < 1 else sorted({1, *range(grain, most + 1, grain)})


def cluster_of(policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload) -> Cluster:
    """What ``dvpo_ray.planning.simulate`` plays through."""
    rollout, engine = policy.rollout, policy.rollout.engine
    context = work.prompt + work.answer / 2
    base = decode_step(shape, device, efficiency, engine, 0, context)
    full = decode_step(shape, device, efficiency, engine, engine.max_num_seqs, context)
    one = Workload(1, work.prompt, work.answer)
    operations = shape.forward_flops(work.prompt, work.prompt / 2) / engine.tensor_parallel
    prefill = operations / (device.speed(engine.dtype) * efficiency.forward)
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
    devices = (
        rollout.actors * rollout.engine.tensor_parallel + policy.scorer.actors + policy.trained_models * policy.learner.ranks
    )
    return Split(rollout.actors, policy.scorer.actors, policy.learner.ranks, devices)


def _limit(policy: PolicyTraining, process: ProcessMemory, device: Device) -> float:
    """Bytes of a device that a process may use: an engine takes its share of a GPU."""
    share = policy.rollout.engine.gpu_memory_utilization if process.name == "engine worker" and not device.is_cpu else 1.0
    return share * device.memory


def _too_large(policy: PolicyTraining, found: list[ProcessMemory], group: DeviceGroup) -> Iterator[ProcessMemory]:
    yield from (process for process in found if process.on_device and process.total > _limit(policy, process, group.device))


def _problems(policy: PolicyTraining, found: list[ProcessMemory], group: DeviceGroup, shared: bool) -> Iterator[str]:
    """Why the run cannot fit, each with a remedy."""
    for process in _too_large(policy, found, group):
        largest = max(process.parts, key=lambda part: process.parts[part])
        limit = _limit(policy, process, group.device)
        yield (
            f"a {process.name} needs {process.total / GB:.1f} GB, of a {group.device.name} it may use {limit / GB:.0f} GB; "
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
    if process in ("learner rank", "critic rank") and part == "activations":
        return "lower learner.token_budget or set learner.gradient_checkpointing = true"
    if process in ("learner rank", "critic rank"):
        less = "" if policy.lora or process == "critic rank" else ", or train adapters alone with the section policy.lora"
        shared = policy.learner.backend.remedy()
        return f"{shared and f'{shared} and '}raise learner.ranks (now {policy.learner.ranks}){less}"
    if process == "engine worker":
        return "raise rollout.engine.gpu_memory_utilization or tensor_parallel, or lower rollout.engine.max_num_seqs"
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
