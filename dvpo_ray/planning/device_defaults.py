"""The settings that a recipe leaves to the device (`auto`): decided here, once, before actors start.

A number type is one for all actors of a role: bfloat16 only where every node that they may be on multiplies it faster than
float32. What suits one kind of device and not another (attention kernel, padding, token budgets, shared prefixes) follows from
whether the role's nodes have GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dvpo_ray.config import Recipe
from dvpo_ray.config.recipes import PairTraining, PolicyTraining
from dvpo_ray.config.sections import EngineSection, GenerationSection, LearnerSection, ModelSection, ScorerSection
from dvpo_ray.planning.memory import activation_bytes, element_size
from dvpo_ray.planning.node_facts import NodeFacts
from dvpo_ray.planning.shapes import ModelShape

R = TypeVar("R", bound=Recipe)
AUTO = "auto"
ROLES = ("learner", "scorer", "rollout")
# On CPU eager attention is the faster one up to this many tokens a row (its scores are kept for the backward pass).
LONGEST_EAGER = 256
CPU_TOKENS = {"learner": 1024, "scorer": 4096}
GPU_TOKENS = {"learner": 16384, "scorer": 32768}
CPU_PADDING = {"learner": 0.15, "scorer": 0.3}
# Tokens of a block of vLLM's cache on CPU, and the most of a machine's memory that the cache is given there.
KV_BLOCK = 128
KV_CACHE_SHARE = 0.125
KV_CACHE_MIB, SMALLEST_KV_CACHE_MIB = 1024, 16
FLOAT32 = "float32"
# Mean absolute gaps, in nats a token, between two pieces of code that compute the same model.
SAME_IN_FLOAT32, SAME_ROUNDED = 1e-3, 0.15
# Of a GPU's memory, for what a micro-batch keeps for its backward pass.
ACTIVATION_SHARE = 0.25


@dataclass(frozen=True)
class Choices:
    """What was decided: the number type of each role that a recipe has, and why, in words."""

    number_types: Mapping[str, str]
    text: str


def settle(
    recipe: R, nodes: Mapping[str, Sequence[NodeFacts]], shape: ModelShape | None = None, kept: Mapping[str, str] | None = None
) -> tuple[R, Choices]:
    """The recipe with every `auto` decided.

    Args:
        recipe: any recipe.
        nodes: by role, the nodes that its actors may be on; none are known of a cluster that starts its nodes on demand.
        shape: of the model, for budgets that a GPU's memory bounds; None takes the largest.
        kept: number types by role that a run began with, which it keeps.
    """
    trainings = _trainings(recipe)
    decided = {role: (kept or {}).get(role) or _number_type(nodes.get(role, ())) for role in ROLES}
    model = _model(recipe.model, trainings, nodes)
    update: dict[str, Any] = {"model": model}
    for name, training in trainings.items():
        update[name] = _training(training, nodes, decided, model.attention, shape)
    settled = recipe.model_copy(update=update)
    return settled, Choices(number_types(settled), _text(number_types(settled), nodes, kept or {}))


def number_types(recipe: Recipe) -> dict[str, str]:
    """The number type of each role that a recipe has."""
    found: dict[str, str] = {}
    for training in _trainings(recipe).values():
        for role in ROLES:
            section = getattr(training, role, None)
            if section is not None:
                found[role] = section.engine.dtype if isinstance(section, GenerationSection) else section.dtype
    return found


def _trainings(recipe: Recipe) -> dict[str, PairTraining | PolicyTraining]:
    parts = {name: getattr(recipe, name) for name in type(recipe).model_fields}
    return {name: part for name, part in parts.items() if isinstance(part, PairTraining | PolicyTraining)}


def _number_type(nodes: Sequence[NodeFacts]) -> str:
    """Where no node is known yet, bfloat16: the actors say so if it is slow where they are."""
    return "bfloat16" if all(node.multiplies_bfloat16 for node in nodes) else "float32"


def _on_gpu(nodes: Sequence[NodeFacts]) -> bool:
    return any(node.is_gpu for node in nodes)


def _model(
    model: ModelSection, trainings: Mapping[str, PairTraining | PolicyTraining], nodes: Mapping[str, Sequence[NodeFacts]]
) -> ModelSection:
    """Learner and scorer have the same kernel: their log-probs are compared."""
    on_gpu = _on_gpu([*nodes.get("learner", ()), *nodes.get("scorer", ())])
    longest = max((training.longest_row for training in trainings.values()), default=0)
    update: dict[str, Any] = {}
    if model.attention == AUTO:
        update["attention"] = "eager" if not on_gpu and longest <= LONGEST_EAGER else "sdpa"
    if model.share_prefix == AUTO:
        update["share_prefix"] = "off" if on_gpu else "on"
    return model.model_copy(update=update)


def _training(
    training: PairTraining | PolicyTraining,
    nodes: Mapping[str, Sequence[NodeFacts]],
    decided: Mapping[str, str],
    attention: str,
    shape: ModelShape | None,
) -> PairTraining | PolicyTraining:
    update: dict[str, Any] = {}
    budget = _learner_tokens(training, nodes.get("learner", ()), attention, shape)
    for role in ROLES:
        section = getattr(training, role, None)
        if isinstance(section, GenerationSection):
            engine = _engine(section.engine, decided[role], nodes.get(role, ()), shape)
            update[role] = section.model_copy(update={"engine": engine})
        elif section is not None:
            tokens = budget if role == "learner" else max(training.longest_row, _tokens(role, nodes))
            update[role] = _reader(section, role, decided[role], _on_gpu(nodes.get(role, ())), tokens)
    rollout, learner = update.get("rollout"), update["learner"]
    if rollout is not None and rollout.max_probe_gap == AUTO:
        # A GPU's matrix products may round float32 (TF32) in one of the two.
        exact = rollout.engine.dtype == learner.dtype == FLOAT32 and not _on_gpu(nodes.get("rollout", ()))
        gap = SAME_IN_FLOAT32 if exact else SAME_ROUNDED
        update["rollout"] = rollout.model_copy(update={"max_probe_gap": gap})
    return training.model_copy(update=update)


def _engine(engine: EngineSection, dtype: str, nodes: Sequence[NodeFacts], shape: ModelShape | None) -> EngineSection:
    if engine.dtype == AUTO:
        engine = engine.model_copy(update={"dtype": dtype})
    if engine.kv_cache_mib == AUTO:
        engine = engine.model_copy(update={"kv_cache_mib": _kv_cache_mib(engine, nodes, shape)})
    return engine


def _kv_cache_mib(engine: EngineSection, nodes: Sequence[NodeFacts], shape: ModelShape | None) -> int:
    """MiB that hold all rows that an engine takes at once: each begins a block of its own, and vLLM keeps one for itself."""
    if shape is None:
        return KV_CACHE_MIB
    blocks = engine.max_num_seqs * math.ceil(engine.max_model_len / KV_BLOCK) + 1
    wanted = shape.kv_bytes(blocks * KV_BLOCK, element_size(engine.dtype))
    one_row = wanted / engine.max_num_seqs * 2
    most = max(min((node.memory for node in nodes), default=math.inf) * KV_CACHE_SHARE, one_row)
    return max(SMALLEST_KV_CACHE_MIB, math.ceil(min(wanted, most) / 2**20))


def _reader(
    section: LearnerSection | ScorerSection, role: str, dtype: str, on_gpu: bool, tokens: int
) -> LearnerSection | ScorerSection:
    wanted = {"dtype": dtype, "token_budget": tokens, "max_padding": 1.0 if on_gpu else CPU_PADDING[role]}
    return section.model_copy(update={name: value for name, value in wanted.items() if getattr(section, name) == AUTO})


def _tokens(role: str, nodes: Mapping[str, Sequence[NodeFacts]]) -> int:
    return (GPU_TOKENS if _on_gpu(nodes.get(role, ())) else CPU_TOKENS)[role]


def _learner_tokens(
    training: PairTraining | PolicyTraining, nodes: Sequence[NodeFacts], attention: str, shape: ModelShape | None
) -> int:
    """Tokens of a micro-batch: as many as the smallest GPU of the role has room for, and at least what must stay together."""
    needed, tokens = training.longest_pass, _tokens("learner", {"learner": nodes})
    if shape is not None and _on_gpu(nodes):
        room = ACTIVATION_SHARE * min(node.memory for node in nodes if node.is_gpu)
        checkpointing = training.learner.gradient_checkpointing
        while tokens > needed and activation_bytes(shape, tokens, training.longest_row, attention, checkpointing) > room:
            tokens //= 2
    return max(tokens, needed)


def _text(used: Mapping[str, str], nodes: Mapping[str, Sequence[NodeFacts]], kept: Mapping[str, str]) -> str:
    """The number types in words: `float32 for learner, scorer and rollout (bfloat16 at 0.13 times ...)`."""
    by_type: dict[str, list[str]] = {}
    for role, dtype in used.items():
        by_type.setdefault(dtype, []).append(role)
    said = " and ".join(f"{dtype} for {', '.join(roles)}" for dtype, roles in sorted(by_type.items()))
    if kept:
        return f"numbers are {said}, as the run began"
    reasons = sorted({node.why for role in used for node in nodes.get(role, ())})
    return f"numbers are {said} ({'; '.join(reasons) if reasons else 'no node is up yet to measure'})"
