"""Seconds of each stage of a step, from operations, bytes moved, and the share of the device's peak that is reached."""

from __future__ import annotations

from dataclasses import dataclass

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.rewards import model_rewards
from dvpo_ray.config.sections import EngineSection, PtxSection
from dvpo_ray.planning.devices import Device
from dvpo_ray.planning.memory import element_size
from dvpo_ray.planning.shapes import ModelShape

STAGES = ("rollout", "score", "learn", "sync")


@dataclass(frozen=True)
class Efficiency:
    """Shares of the device's peak: of its operations in training and in forward passes, of its memory bandwidth in decoding.

    ``step_overhead`` is what an engine adds to every decoding step, in seconds, and ``sync_bandwidth`` the weights that are
    written, hashed, read and loaded, in bytes a second. The defaults are those of well-fed GPUs; ``calibrated`` fits them to a
    run.
    """

    training: float = 0.40
    forward: float = 0.50
    bandwidth: float = 0.60
    step_overhead: float = 0.004
    sync_bandwidth: float = 1e9


@dataclass(frozen=True)
class Workload:
    """Rows of one step and their mean lengths, in tokens."""

    rows: int
    prompt: float
    answer: float

    @classmethod
    def of(cls, policy: PolicyTraining, answer: float | None = None) -> Workload:
        """The longest rows a recipe allows, or rows of a known mean answer."""
        rollout = policy.rollout
        return cls(rollout.rows_per_step, policy.data.max_prompt_tokens, answer or rollout.max_new_tokens)

    @classmethod
    def of_ptx(cls, ptx: PtxSection) -> Workload:
        """The longest rows of the pretraining loss in one optimizer step."""
        return cls(ptx.rows_per_step, ptx.data.max_prompt_tokens, ptx.data.max_answer_tokens)

    @property
    def context(self) -> float:
        """Tokens that a token sees on average."""
        return (self.prompt + self.answer) / 2

    @property
    def tokens(self) -> float:
        """Tokens read by a model that scores or trains."""
        return self.rows * (self.prompt + self.answer)


def decode_step(
    shape: ModelShape, device: Device, efficiency: Efficiency, engine: EngineSection, active: float, context: float
) -> float:
    """Seconds in which an engine adds one token to each of ``active`` answers: memory or arithmetic, whichever is slower."""
    size, shards = element_size(engine.dtype), engine.tensor_parallel
    moved = (size * shape.read_parameters(active) + shape.kv_bytes(active * context, size)) / shards
    operations = shape.forward_flops(active, context, logits=active) / shards
    memory = moved / (device.bandwidth * efficiency.bandwidth)
    return max(memory, operations / (device.speed(engine.dtype) * efficiency.forward)) + efficiency.step_overhead


def rollout_seconds(policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload) -> float:
    """Seconds to generate a step's answers on all engines, each in waves of as many answers as it takes at once."""
    rollout, engine = policy.rollout, policy.rollout.engine
    rows = work.rows / rollout.actors
    active = min(rows, rollout.engine.max_num_seqs)
    prefill = shape.forward_flops(rows * work.prompt, work.prompt / 2) / engine.tensor_parallel
    decode = decode_step(shape, device, efficiency, engine, active, work.prompt + work.answer / 2)
    return prefill / (device.speed(engine.dtype) * efficiency.forward) + rows / active * work.answer * decode


def score_seconds(policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload) -> float:
    """Seconds to read a step's answers with the reference model, reward models, and the value model where it is asked for, on all
    scorers."""
    logits = work.rows * work.answer
    without_logits = len(model_rewards(policy.rewards)) + policy.advantage.reads_values
    flops = without_logits * shape.forward_flops(work.tokens, work.context)
    flops += shape.forward_flops(work.tokens, work.context, logits)
    return flops / policy.scorer.actors / (device.speed(policy.scorer.dtype) * efficiency.forward)


def learn_seconds(policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload) -> float:
    """Seconds of the learner ranks: forward and backward passes, of a pretraining loss too, and optimizer.

    Old log-probs cost one more forward pass when a step has several updates.
    """
    passes = policy.ppo.inner_epochs
    updates = passes * policy.ppo.mini_batches
    flops = passes * _training_flops(policy, shape, work)
    if policy.ptx is not None:
        flops += updates * _training_flops(policy, shape, Workload.of_ptx(policy.ptx))
    if updates > 1 and policy.ppo.old_log_probs == "learner":
        flops += shape.forward_flops(work.tokens, work.context, work.rows * work.answer)
    ranks = policy.learner.ranks
    sharded = ranks if policy.learner.backend.shards_optimizer else 1
    optimizer = updates * 32 * shape.trained_parameters(policy.lora) / sharded / (device.bandwidth * efficiency.bandwidth)
    return flops / ranks / (device.speed(policy.learner.dtype) * efficiency.training) + optimizer


def _training_flops(policy: PolicyTraining, shape: ModelShape, work: Workload) -> float:
    """Operations of a forward and a backward pass (twice a forward; the head's logits are computed again).

    A backward pass through frozen weights is as one forward pass: with LoRA their gradients are not computed, and what the
    adapters cost is left out.
    """
    body = shape.forward_flops(work.tokens, work.context)
    head = shape.forward_flops(0, 0, work.rows * work.answer)
    recomputed = body if policy.learner.gradient_checkpointing else 0.0
    frozen = 0 if policy.lora is None else 1
    return (3 - frozen) * body + (4 - frozen) * head + recomputed


def critic_seconds(policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload) -> float:
    """Seconds of an online critic's updates, on as many ranks as the policy has."""
    body = shape.forward_flops(work.tokens, work.context)
    learner, ppo = policy.learner, policy.ppo
    updates = ppo.inner_epochs * ppo.mini_batches
    sharded = learner.ranks if learner.backend.shards_optimizer else 1
    optimizer = updates * 32 * shape.value_parameters / sharded / (device.bandwidth * efficiency.bandwidth)
    recomputed = 1 if learner.gradient_checkpointing else 0
    return (
        ppo.inner_epochs * (3 + recomputed) * body / learner.ranks / (device.speed(learner.dtype) * efficiency.training)
        + optimizer
    )


def critic_values_seconds(
    policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload
) -> float:
    """Seconds in which an online critic's ranks read a step's answers before their update."""
    learner = policy.learner
    return shape.forward_flops(work.tokens, work.context) / learner.ranks / (device.speed(learner.dtype) * efficiency.forward)


def sync_seconds(policy: PolicyTraining, shape: ModelShape, efficiency: Efficiency) -> float:
    """Seconds to bring new weights to the engines."""
    return element_size(policy.learner.dtype) * shape.parameters / efficiency.sync_bandwidth


def stage_seconds(
    policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload
) -> dict[str, float]:
    """All stages of one step, each as if it ran alone."""
    given = (policy, shape, device, efficiency, work)
    learn = learn_seconds(*given)
    if policy.advantage.online_critic is not None:
        learn += critic_values_seconds(*given) + critic_seconds(*given)
    return {
        "rollout": rollout_seconds(*given),
        "score": score_seconds(*given),
        "learn": learn,
        "sync": sync_seconds(policy, shape, efficiency),
    }


def step_seconds(stages: dict[str, float], max_staleness: int, shared_devices: bool) -> float:
    """Seconds of a step in the steady state, when no stage waits for a single late answer.

    On devices that all stages share, or without staleness, stages follow one another. Else the slowest sets the pace, and
    engines and learner both stand still during a sync; and a step is under way for its whole length, with
    ``max_staleness + 1`` at a time.
    """
    total = sum(stages.values())
    if shared_devices or max_staleness == 0:
        return total
    slowest = max(stages["rollout"] + stages["sync"], stages["score"], stages["learn"] + stages["sync"])
    return max(slowest, total / (max_staleness + 1))
