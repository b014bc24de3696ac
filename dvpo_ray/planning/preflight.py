"""What can be known of a run's engines before anything is trained: whether they can serve the model, and what they need."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from safetensors import safe_open

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import GenerationSection, settled
from dvpo_ray.errors import ModelError
from dvpo_ray.models.folder import weight_files
from dvpo_ray.planning.devices import Device
from dvpo_ray.planning.memory import GB, element_size, processes
from dvpo_ray.planning.shapes import ModelShape

# What of a model's configuration vLLM takes for its longest context, the smallest of those there are.
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# RoPE scalings whose factor the length of the configuration contains already.
CONTAINED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
# Parts of a process whose size follows from the model alone.
MODEL_PARTS = ("weights", "gradients", "optimizer", "value model", "reference model", "reward models")
# Layers other than these keep fewer keys and values than one for every token.
FULL = "full_attention"


@dataclass(frozen=True)
class Engines:
    """The engines of a recipe: the name of the section that says how they generate, the section, and whether they run on CPU."""

    field: str
    section: GenerationSection
    on_cpu: bool


@dataclass(frozen=True)
class Memory:
    """Memory of this machine, in bytes: all that processes may use, swap included, and what is free now."""

    total: float
    free: float

    @classmethod
    def of_this_machine(cls) -> Memory:
        """As the kernel tells it, within the limit of this container."""
        found, swap = psutil.virtual_memory(), psutil.swap_memory()
        limit = MEMORY_LIMIT.read_text().strip() if MEMORY_LIMIT.is_file() else "max"
        most = math.inf if limit == "max" else float(limit)
        return cls(min(found.total, most) + swap.total, min(found.available, most))


def unservable(config: Mapping[str, Any], engines: Engines, head_sizes: frozenset[int], long_allowed: bool) -> Iterator[str]:
    """Why no engine could serve a model, each with a remedy.

    ``config`` is that of the model's text part; ``head_sizes`` are those that CPU kernels have (none: not known).
    ``long_allowed``: vLLM was told to serve beyond the model's length.
    """
    engine, field = engines.section.engine, engines.field
    size = head_size(config)
    if engines.on_cpu and head_sizes and size and size not in head_sizes:
        yield (
            f"model.path: its attention heads have {size} numbers, and vLLM's CPU kernels are made for "
            f"{', '.join(map(str, sorted(head_sizes)))}: take a model with one of these sizes, or a GPU for the engines"
        )
    window = config.get("sliding_window") or math.inf
    if config.get("model_type") == "cohere2" and engine.max_model_len > window:
        yield (
            f"{field}.engine.max_model_len ({engine.max_model_len}) is more than the sliding window of a 'cohere2' ({window} "
            "tokens), beyond which vLLM's attention reaches one token further back than transformers' and log-probs differ: "
            f"lower it to {window}, or take another model"
        )
    longest, key = longest_context(config)
    if engine.max_model_len > longest and not long_allowed:
        yield (
            f"{field}.engine.max_model_len ({engine.max_model_len}) is more than the model was made for ({key}: {longest:g} "
            f"tokens): lower it to {longest:g}, and the lengths of prompts and answers with it, or take another model"
        )
    needed = cache_bytes(config, engines.section)
    given = settled(engine.kv_cache_mib) * 2**20
    if engines.on_cpu and needed > given:
        yield (
            f"{field}.engine.kv_cache_mib ({engine.kv_cache_mib}) does not hold one row of max_model_len "
            f"({engine.max_model_len}) tokens, which takes {math.ceil(needed / 2**20)} MiB: raise it to at least that, or lower "
            "max_model_len"
        )


def head_size(config: Mapping[str, Any]) -> int:
    """Numbers of one attention head; 0 where the configuration does not tell, as with compressed keys and values (MLA)."""
    if config.get("kv_lora_rank"):
        return 0
    heads = config.get("num_attention_heads")
    known = config.get("head_dim") or config.get("hidden_size_per_head")
    if known or not isinstance(heads, int) or not heads or not isinstance(config.get("hidden_size"), int):
        return int(known or 0)
    return int(config["hidden_size"]) // heads


def longest_context(config: Mapping[str, Any]) -> tuple[float, str]:
    """Longest prompt plus answer that vLLM serves of a model, in tokens, and the key that says so; infinite when none does."""
    lengths = {key: float(config[key]) for key in LENGTHS if config.get(key) is not None}
    if not lengths:
        return math.inf, ""
    key = "model_max_length" if lengths.get("model_max_length") else min(lengths, key=lambda name: lengths[name])
    if "gemma3" in str(config.get("model_type")):
        # Its length is scaled already.
        return lengths[key], key
    factor = 1.0
    for rope in _ropes(config):
        if rope.get("rope_type", rope.get("type", "default")) not in CONTAINED:
            factor = rope.get("factor", factor)
    return lengths[key] * (1.0 if factor is None else factor), key


def _ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """RoPE settings, one for each kind of layer when they differ."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(found, Mapping) or not found:
        return []
    nested = [part for part in found.values() if isinstance(part, Mapping)]
    return nested if len(nested) == len(found) else [found]


def cache_bytes(config: Mapping[str, Any], section: GenerationSection) -> float:
    """Keys and values of one row of ``max_model_len`` tokens in a worker of an engine, in bytes; 0 when they are not known to be
    kept for all tokens in all layers."""
    kinds = set(config.get("layer_types") or [FULL])
    if config.get("kv_lora_rank") or kinds != {FULL} or (config.get("sliding_window") and config.get("use_sliding_window", True)):
        return 0.0
    try:
        shape = ModelShape.of(dict(config))
    except ModelError:
        return 0.0
    engine = section.engine
    heads = max(1, shape.kv_heads // engine.tensor_parallel)
    return shape.kv_bytes(engine.max_model_len, element_size(engine.dtype)) * heads / shape.kv_heads


def unsyncable(config: Mapping[str, Any], adapters: bool) -> Iterator[str]:
    """Why engines that serve a model cannot take its weights anew; ``adapters``: only those are trained.

    An update reaches parameters through their loaders. vLLM fills experts and attention sinks of GPT-OSS without: a tiny one was
    served right, and after an update 11 nats from the weights that were sent (``scripts.family_sync``). Layers that have
    adapters are reached.
    """
    if config.get("model_type") == "gpt_oss" and not adapters:
        yield (
            "model.path: engines do not take up all weights of a 'gpt_oss' that they are sent, so the whole model cannot be "
            "trained with them: train adapters (a section 'lora'), or take a model of another type"
        )


def parameters_in(folder: Path) -> int:
    """Numbers in a folder's safetensors files, from their headers."""
    count = 0
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def too_large(
    policy: PolicyTraining, config: Mapping[str, Any], parameters: int, attention: str, memory: Memory
) -> tuple[list[str], list[str]]:
    """Why the processes of a policy run cannot fit into this machine's memory, and why they may not; both with a remedy.

    Models and optimizer alone are certain; the rest is the planner's estimate (``dvpo plan``).
    """
    try:
        shape = ModelShape.of(dict(config))
    except ModelError:
        return [], []
    device = Device("this machine", memory.total, 1.0, 1.0, 1.0, is_cpu=True)
    found = processes(policy, shape, attention, device)
    # Planning takes every model for one with gated feed-forward layers.
    real = min(1.0, parameters / shape.parameters)
    certain = real * sum(process.count * process.parts.get(part, 0.0) for process in found for part in MODEL_PARTS)
    total = sum(process.count * process.total for process in found)
    remedy = "take a smaller model, fewer actors, adapters alone (policy.lora), or a machine with more memory"
    here = f"{certain / GB:.1f} GB, this machine has {memory.total / GB:.1f}"
    if certain > memory.total:
        return [f"model.path: models and optimizer alone take {here}: {remedy}"], []
    if total > memory.free:
        need = f"about {total / GB:.1f} GB (`dvpo plan`), {memory.free / GB:.1f} are free"
        return [], [f"policy training will need {need}: end other programs, or {remedy}"]
    return [], []
