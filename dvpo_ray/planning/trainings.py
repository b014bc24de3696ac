"""The plans of all trainings of a recipe, those on pairs too: what each process needs, and how long a step takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dvpo_ray.config import Recipe
from dvpo_ray.config.algorithms import Grpo, Ppo
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.config.recipes import PairTraining, PolicyTraining, ValueTraining
from dvpo_ray.config.sections import EngineSection, RolloutSection, ScorerSection, TransferSection
from dvpo_ray.config.updates import PpoUpdateSection
from dvpo_ray.planning.devices import DeviceGroup
from dvpo_ray.planning.memory import GB, ProcessMemory, processes
from dvpo_ray.planning.plan import make_plan
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.times import Efficiency, Workload, critic_seconds, learn_seconds

Training = PairTraining | PolicyTraining
# What a checkpoint holds of each trained parameter: float32 weights and two moments.
CHECKPOINT_BYTES = 12


@dataclass(frozen=True)
class TrainingPlan:
    """One training of a recipe on given devices. ``name`` is its section.

    ``processes`` are all it has; ``step_s`` is a step whose stages follow one another, in seconds; ``checkpoint_bytes`` are those
    of all ranks together; ``problems`` say why it cannot run.
    """

    name: str
    training: Training
    processes: tuple[ProcessMemory, ...]
    step_s: float
    checkpoint_bytes: float
    problems: tuple[str, ...]

    @property
    def ranks(self) -> int:
        """Learner processes, those of a critic included."""
        models = self.training.trained_models if isinstance(self.training, PolicyTraining) else 1
        return models * self.training.learner.ranks

    @property
    def generates(self) -> bool:
        """Whether it has engines and scorers."""
        return _generates(self.training)


def _generates(training: Training) -> bool:
    return isinstance(training, PolicyTraining) or (isinstance(training, DpoTraining) and training.evaluation is not None)


def trainings(recipe: Recipe) -> dict[str, Training]:
    """The trainings of a recipe by section, in the order in which they run."""
    parts = {name: getattr(recipe, name, None) for name in ("value", "policy", "dpo")}
    return {name: part for name, part in parts.items() if isinstance(part, PairTraining | PolicyTraining)}


def plan_trainings(recipe: Recipe, shape: ModelShape, devices: DeviceGroup) -> list[TrainingPlan]:
    """Plan every training of a recipe whose `auto` settings are decided (``device_defaults.settle``)."""
    attention = recipe.model.attention
    return [
        _plan_policy(name, training, attention, shape, devices)
        if isinstance(training, PolicyTraining)
        else _plan_pairs(name, training, attention, shape, devices)
        for name, training in trainings(recipe).items()
    ]


def _plan_policy(name: str, policy: PolicyTraining, attention: str, shape: ModelShape, devices: DeviceGroup) -> TrainingPlan:
    plan = make_plan(policy, shape, attention, devices, Workload.of(policy))
    kept = shape.trained_parameters(policy.lora) + (shape.value_parameters if policy.advantage.online_critic is not None else 0)
    problems = tuple(f"{name}: {problem}" for problem in plan.problems)
    return TrainingPlan(name, policy, tuple(plan.processes), sum(plan.stages.values()), CHECKPOINT_BYTES * kept, problems)


def _plan_pairs(name: str, training: PairTraining, attention: str, shape: ModelShape, devices: DeviceGroup) -> TrainingPlan:
    policy = _stand_in(training)
    data, efficiency, device = training.data, Efficiency(), devices.device
    work = Workload(2 * training.pairs_per_step, data.max_prompt_tokens, data.max_answer_tokens)
    if isinstance(training, ValueTraining):
        kept, seconds = shape.value_parameters, training.inner_epochs * critic_seconds(policy, shape, device, efficiency, work)
    else:
        kept, seconds = shape.trained_parameters(policy.lora), learn_seconds(policy, shape, device, efficiency, work)
    found = tuple(_processes_of_pairs(training, processes(policy, shape, attention, device)))
    if _generates(training):
        problems = make_plan(policy, shape, attention, devices, work).problems
    else:
        problems = list(_problems(found, devices))
    return TrainingPlan(
        name, training, found, seconds, CHECKPOINT_BYTES * kept, tuple(f"{name}: {problem}" for problem in problems)
    )


def _stand_in(training: PairTraining) -> PolicyTraining:
    """A policy training whose ranks do what those of a training on pairs do: its critic is a value model that is trained, its
    policy one that is trained on pairs. What it says of engines and scorers counts where the training has them."""
    dpo = training if isinstance(training, DpoTraining) else None
    if dpo is not None and _generates(dpo):
        generation, scorer, transfer = dict(dpo.rollout), dpo.scorer, dpo.transfer
    else:
        engine = EngineSection(dtype="float32", kv_cache_mib=16)
        generation = {"engine": engine, "max_new_tokens": training.data.max_answer_tokens}
        scorer, transfer = ScorerSection(dtype="float32", token_budget=16), TransferSection(bucket_mib=1)
    return PolicyTraining.model_construct(
        data=training.data,
        learner=training.learner,
        lora=None if dpo is None else dpo.lora,
        rollout=RolloutSection.model_construct(**generation),
        scorer=scorer,
        transfer=transfer,
        advantage=Ppo() if dpo is None else Grpo(score="none"),
        ppo=PpoUpdateSection.model_construct(inner_epochs=1, mini_batches=1, old_log_probs="engine"),
    )


def _processes_of_pairs(training: PairTraining, found: list[ProcessMemory]) -> Iterator[ProcessMemory]:
    """Those that such a training has, of all that its stand-in has."""
    trained = "critic rank" if isinstance(training, ValueTraining) else "learner rank"
    for process in found:
        if process.name == trained:
            yield replace(process, name="learner rank")
        elif process.name == "driver and Ray" or (_generates(training) and not process.name.endswith("rank")):
            yield process


def _problems(found: tuple[ProcessMemory, ...], devices: DeviceGroup) -> Iterator[str]:
    """Why ranks alone do not fit; as ``planning.plan`` says it of a policy training."""
    device = devices.device
    for process in found:
        if process.on_device and process.total > device.memory:
            yield (
                f"a {process.name} needs {process.total / GB:.1f} GB, a {device.name} has {device.memory / GB:.0f} GB: shard the "
                "model over more learner.ranks, lower learner.token_budget, or set learner.gradient_checkpointing = true"
            )
    needed = sum(process.total * process.count for process in found if process.on_device)
    if needed > devices.count * device.memory:
        yield (
            f"all processes together need {needed / GB:.1f} GB, {devices.count} x {device.name} hold "
            f"{devices.count * device.memory / GB:.0f} GB: add devices, or lower learner.token_budget"
        )
