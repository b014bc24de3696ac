"""Bytes each process needs, by what they are for."""

from __future__ import annotations

from dataclasses import dataclass

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.rewards import model_rewards
from dvpo_ray.config.sections import LearnerSection, settled
from dvpo_ray.planning.devices import Device
from dvpo_ray.planning.shapes import ModelShape

GB = 1e9
# Interpreter and libraries of a process, by proportional set size on a machine that runs them all (measured on the demo;
# benchmarks/RESULTS.md). On a GPU the context of CUDA and its libraries.
CPU_BASE = {"learner": 0.60 * GB, "scorer": 0.45 * GB, "engine": 0.95 * GB, "engine front": 1.10 * GB, "driver": 0.60 * GB}
RAY = 0.30 * GB
GPU_BASE = 1.0 * GB
# How far a CPU learner may grow before it gives memory back (actors.learner.rank.GROWTH_ALLOWED).
CPU_GROWTH = 1.1
HEAD_CHUNK = 256


@dataclass(frozen=True)
class ProcessMemory:
    """One kind of process: how many there are, and the bytes of one by purpose. ``on_device`` is False for host-only ones."""

    name: str
    count: int
    parts: dict[str, float]
    on_device: bool = True

    @property
    def total(self) -> float:
        """Bytes of one process."""
        return sum(self.parts.values())


def element_size(dtype: str) -> int:
    """Bytes of one number."""
    return {"bfloat16": 2, "float32": 4}[dtype]


def trained_bytes(parameters: float, learner: LearnerSection, frozen: float = 0) -> dict[str, float]:
    """Model state of mixed-precision Adam on one rank (Rajbhandari et al. 2020, arXiv 1910.02054, section 3).

    Weights in the compute type, one float32 sum of gradients (a bfloat16 gradient is added to it and dropped, parameter by
    parameter), two moments, and with bfloat16 the master weights. The training backend says which of them ranks share, and which
    gradients a step copies; the copy counts with the optimizer. Parameters that are ``frozen`` besides have weights only.
    """
    size, backend = element_size(learner.dtype), learner.backend
    weights, gradients, optimizer = (
        learner.ranks if sharded else 1
        for sharded in (backend.shards_weights, backend.shards_gradients, backend.shards_optimizer)
    )
    masters = 4 if size == 2 else 0
    return {
        "weights": (parameters + frozen) * size / weights,
        "gradients": parameters * 4 / gradients,
        "optimizer": parameters * (masters + 8 + backend.copied_gradient_bytes(learner.dtype)) / optimizer,
    }


def activation_bytes(shape: ModelShape, tokens: float, context: float, attention: str, checkpointing: bool) -> float:
    """Activations kept for the backward pass of one micro-batch, in bfloat16.

    34 bytes times hidden size a token and layer, and 5 times heads times context when attention scores are kept (Korthikanti et
    al. 2022, arXiv 2205.05198, eq. 1); with checkpointing the layers' inputs and one layer's activations.
    """
    layer = 34 * shape.hidden + (5 * shape.heads * context if attention == "eager" else 0)
    if checkpointing:
        return tokens * (2 * shape.hidden * shape.layers + layer)
    return tokens * layer * shape.layers


def head_bytes(shape: ModelShape) -> float:
    """Logits of one chunk, their gradient, and float32 work space."""
    return HEAD_CHUNK * shape.vocabulary * (2 + 2 + 4)


def _training(
    policy: PolicyTraining, shape: ModelShape, attention: str, device: Device, trained: float, adapters: bool
) -> dict[str, float]:
    """What a rank needs to train so many parameters, the whole model's or those of adapters beside it; without logits."""
    learner = policy.learner
    longest = max(policy.data.max_prompt_tokens + policy.rollout.max_new_tokens, policy.ptx.data.longest_row if policy.ptx else 0)
    parts = trained_bytes(trained, learner, shape.parameters if adapters else 0)
    kept = activation_bytes(shape, settled(learner.token_budget), longest, attention, learner.gradient_checkpointing)
    parts["activations"] = kept * (element_size(learner.dtype) / 2)
    parts["libraries"] = CPU_BASE["learner"] if device.is_cpu else GPU_BASE
    if device.is_cpu:
        parts["kept by the allocator"] = (CPU_GROWTH - 1) * sum(parts.values())
    return parts


def processes(policy: PolicyTraining, shape: ModelShape, attention: str, device: Device) -> list[ProcessMemory]:
    """Every process of a policy run."""
    learner, scorer, rollout = policy.learner, policy.scorer, policy.rollout
    longest = policy.data.max_prompt_tokens + rollout.max_new_tokens
    base = CPU_BASE if device.is_cpu else dict.fromkeys(CPU_BASE, GPU_BASE)
    training = _training(policy, shape, attention, device, shape.trained_parameters(policy.lora), policy.lora is not None)
    training["logits"] = head_bytes(shape)
    if device.is_cpu:
        training["kept by the allocator"] += (CPU_GROWTH - 1) * training["logits"]
    sent = shape.trained_parameters(policy.lora) * element_size(learner.dtype)
    bucket = min(sent, policy.transfer.bucket_mib * 2**20)
    # What is broadcast leaves from the learner's device and comes to the engines'; else it is in main memory, which all share.
    broadcast = policy.transfer.backend == "broadcast"
    if device.is_cpu or broadcast:
        training["bucket of weights"] = bucket
    frozen = element_size(scorer.dtype)
    scoring = {
        "value model": shape.value_parameters * frozen if policy.advantage.reads_values else 0.0,
        "reference model": shape.parameters * frozen,
        "reward models": len(model_rewards(policy.rewards)) * shape.value_parameters * frozen,
        "activations": settled(scorer.token_budget) * 4 * shape.intermediate * frozen,
        "logits": head_bytes(shape),
        "libraries": base["scorer"],
    }
    engine = rollout.engine
    shards = engine.tensor_parallel
    size = element_size(engine.dtype)
    kv = settled(engine.kv_cache_mib) * 2**20 if device.is_cpu else shape.kv_bytes(longest * engine.max_num_seqs, size) / shards
    serving = {
        "weights": shape.parameters * size / shards,
        "KV cache": kv,
        "logits": engine.max_num_seqs * shape.vocabulary * 4 * 3 / shards,
        "libraries": base["engine"],
    } | ({"bucket of weights": bucket} if broadcast else {})
    critics = []
    if policy.advantage.online_critic is not None:
        critic = _training(policy, shape, attention, device, shape.value_parameters, adapters=False)
        critics = [ProcessMemory("critic rank", learner.ranks, critic)]
    return [
        ProcessMemory("learner rank", learner.ranks, training),
        *critics,
        ProcessMemory("scorer", scorer.actors, scoring),
        ProcessMemory("engine worker", rollout.actors * shards, serving),
        ProcessMemory("engine front ends", rollout.actors, {"libraries": CPU_BASE["engine front"]}, on_device=device.is_cpu),
        ProcessMemory("driver and Ray", 1, {"libraries": CPU_BASE["driver"] + RAY}, on_device=device.is_cpu),
    ]
