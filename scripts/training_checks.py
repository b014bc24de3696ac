"""Checks of one family that train it: real learner ranks, with DeepSpeed, in this process.

As ``scripts.reading_checks``: each takes a model folder and an empty one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from actors.learner.dpo import DpoLearnerRank
from actors.learner.pieces import SEPARATOR
from actors.learner.rank import Rank, free_port
from actors.learner.value import ValueLearnerRank
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.config.recipes import ValueTraining
from dvpo_ray.config.sections import LearnerSection, LoraSection, ModelSection, PairsSection
from dvpo_ray.config.targets import TdTarget
from dvpo_ray.errors import ModelError
from dvpo_ray.learning.pairs import LabelledAnswer, Pair
from dvpo_ray.models.lora import ADAPTERS, merged_tensors
from dvpo_ray.models.token_reader import parameter_hash
from dvpo_ray.models.value_model import load_value_model, read_seal
from scripts.reading_checks import REFUSED, TOLERANCE, YES, check_near, policy_of, seal_with_facts

SECTION = ModelSection(path="tiny", attention="eager")
# Twice as many tokens as one pair, so that a step has several micro-batches.
LEARNER = LearnerSection(
    dtype="float32", learning_rate=1e-3, token_budget=96, max_padding=0.5, cpu_threads=1, betas=(0.9, 0.95), grad_clip=1e9
)
PAIRS = PairsSection(source="pairs", max_prompt_tokens=16, max_answer_tokens=16)
LORA = LoraSection(rank=4, alpha=8)
STEPS = 3
SEED = 5


def pairs() -> list[Pair]:
    """Four pairs of answers of other lengths."""
    numbers = np.random.default_rng(1)

    def answer(prompt: np.ndarray, label: float) -> LabelledAnswer:
        return LabelledAnswer(prompt, numbers.integers(3, 300, int(numbers.integers(3, 9))).astype(np.int32), label)

    prompts = [numbers.integers(3, 300, 9 + i).astype(np.int32) for i in range(4)]
    return [(answer(prompt, 1.0), answer(prompt, -1.0)) for prompt in prompts]


@contextmanager
def dpo_rank(base: Path, lora: LoraSection | None = None, **learner: Any) -> Iterator[DpoLearnerRank]:
    """A rank that has loaded a policy; its memory is given back."""
    settings = DpoTraining(
        data=PAIRS,
        learner=LEARNER.model_copy(update=learner),
        lora=lora,
    )
    rank = StayingDpoRank(0, 1, str(base), SECTION, settings, SEED, total_steps=STEPS)
    with started(rank):
        yield rank


class Staying(Rank):
    """A rank that stays in its process group: DeepSpeed keeps the first one of a process for those that start after it."""

    def leave(self) -> None:
        """Stay."""


class StayingDpoRank(Staying, DpoLearnerRank):
    """See its bases."""


class StayingValueRank(Staying, ValueLearnerRank):
    """See its bases."""


@contextmanager
def started(rank: Any) -> Iterator[None]:
    """A rank of one, in this process, while the block runs."""
    threads = torch.get_num_threads()
    try:
        rank.start("127.0.0.1", free_port())
        yield
    finally:
        rank.stop()
        torch.set_num_threads(threads)


def reference(rank: DpoLearnerRank) -> np.ndarray:
    """Scores of all answers by the policy as it is, float64 [P, 2]."""
    found = rank.scores([answer for pair in pairs() for answer in pair])
    return np.array([found[i] for i in range(len(found))]).reshape(-1, 2)


def state_of(rank: Rank) -> dict[str, Tensor]:
    """Copies of what the optimizer holds, by ``KEY|PARAMETER``."""
    return {name.rpartition(SEPARATOR)[0]: tensor.detach().clone() for name, tensor in rank.backend.pieces()}


def dpo(base: Path, room: Path) -> str:
    """Steps of the DPO learner lower the loss, from ln 2 on, and what is saved is the policy that was trained."""
    with dpo_rank(base) as rank:
        given = reference(rank)
        steps = [rank.step(pairs(), given) for _ in range(STEPS)]
        check_learns([one["loss/dpo"] for one in steps], steps, math.log(2))
        rank.save(str(room / "policy"), {})
        assert parameter_hash(policy_of(room / "policy")) == parameter_hash(rank.backend.model)
    return YES


def check_learns(losses: list[float], steps: list[dict[str, float]], first: float | None = None) -> None:
    """Raises AssertionError unless every update was taken and lowered the loss."""
    assert first is None or abs(losses[0] - first) <= TOLERANCE, f"the first loss is {losses[0]:.4g}, not {first:.4g}"
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0], f"losses of steps: {losses}"
    norms = [one["optimizer/grad_norm"] for one in steps]
    assert all(math.isfinite(norm) and norm > 0 for norm in norms), f"gradient norms: {norms}"


def lora(base: Path, room: Path) -> str:
    """Adapters learn while the model stays, and adapters, merged folder and what engines load are the same policy; or they are
    refused where the model is loaded."""
    try:
        with dpo_rank(base, LORA) as rank:
            given = reference(rank)
            steps = [rank.step(pairs(), given) for _ in range(STEPS)]
            check_learns([one["loss/dpo"] for one in steps], steps, math.log(2))
            rank.save(str(room / "policy"), {})
            trained = torch.from_numpy(reference(rank))
            check_for_engines(rank, base, room / "policy")
    except ModelError as error:
        kind = policy_of(base).config.model_type
        assert f"model type '{kind}'" in str(error) and "train without policy.lora" in str(error), str(error)
        return REFUSED
    with dpo_rank(room / "policy") as merged:
        check_near(torch.from_numpy(reference(merged)), trained, "scores of the merged policy")
    check_near(peft_scores(base, room / ADAPTERS), trained, "scores of the adapters as peft loads them")
    return YES


def check_for_engines(rank: DpoLearnerRank, base: Path, merged: Path) -> None:
    """What an engine makes of the adapters is what the merged folder holds."""
    stored = load_file(merged / "model.safetensors")
    with rank.backend.whole(list(rank.backend.shapes())) as weights:
        adapters = {name: weight.detach() for name, weight in weights.items()}
    loaded = dict(merged_tensors(base, adapters, LORA.scale, [], torch.float32))
    before = load_file(base / "model.safetensors")
    idle = [name for name, weight in adapters.items() if ".lora_B." in name and not weight.any()]
    assert not idle, f"{len(idle)} adapters are never trained, such as {idle[0]}"
    changed = {name for name in stored if not torch.equal(stored[name], before[name])}
    assert changed and changed <= set(loaded), f"engines are not sent {sorted(changed - set(loaded))}"
    for name, tensor in loaded.items():
        check_near(tensor, stored[name], f"'{name}' as engines load it", 1e-5)


def peft_scores(base: Path, adapters: Path) -> Tensor:
    """Scores of all answers [P, 2] by a model with adapters that peft has loaded."""
    from peft import PeftModel

    from dvpo_ray.learning.batching import pad_sequences
    from dvpo_ray.learning.dpo_update import answer_scores
    from scripts.reading_checks import own_log_probs

    model = PeftModel.from_pretrained(policy_of(base), str(adapters)).eval()
    answers = [answer for pair in pairs() for answer in pair]
    batch = pad_sequences([one.prompt_ids for one in answers], [one.response_ids for one in answers])
    with torch.no_grad():
        return answer_scores(own_log_probs(model, batch), batch.response_lengths, False).double().view(-1, 2)


def resume(base: Path, room: Path) -> str:
    """A rank that goes on from a checkpoint takes the step that the one which wrote it takes, bit for bit."""
    with dpo_rank(base) as rank:
        given = reference(rank)
        rank.step(pairs(), given)
        rank.begin_checkpoint(str(room))
        rank.end_checkpoint()
        expected, weights = rank.step(pairs(), given), state_of(rank)
    with dpo_rank(base) as again:
        again.load_checkpoint(str(room))
        assert again.step(pairs(), given) == expected, "the step after a checkpoint is another one"
        found = state_of(again)
    assert set(found) == set(weights) and all(torch.equal(found[name], weights[name]) for name in weights)
    return YES


def checkpointing(base: Path, room: Path) -> str:
    """Activations that are computed again give the same gradients."""
    found = []
    for again in (False, True):
        with dpo_rank(base, gradient_checkpointing=again) as rank:
            calls = count_calls(rank.backend.model)
            rank.step(pairs(), reference(rank))
            found.append((sum(calls), state_of(rank)))
    (plain, expected), (more, gradients) = found
    assert more > plain, "no layer was computed again"
    names = [name for name in expected if name.startswith("exp_avg|")]
    norm = torch.stack([expected[name].norm() for name in names]).norm()
    for name in names:
        check_near(gradients[name] / norm, expected[name] / norm, f"gradient of '{name}'")
    return YES


def count_calls(model: Any) -> list[int]:
    """A list to which every call of a backbone's module adds 1."""
    calls: list[int] = []
    for layer in model.base_model.modules():
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def value_learner(base: Path, room: Path) -> str:
    """Steps of the value learner lower the loss, and the sealed folder holds the model that was trained."""
    settings = ValueTraining(data=PAIRS, learner=LEARNER, target=TdTarget(lam=0.9))
    rank = StayingValueRank(0, 1, str(base), SECTION, settings, SEED, total_steps=STEPS)
    answers = [answer for pair in pairs() for answer in pair]
    with started(rank):
        steps = [rank.step(pairs(), settings.target) for _ in range(STEPS)]
        check_learns([one["loss/value"] for one in steps], steps)
        rank.save(str(room))
        seal_with_facts(room, base)
        read_seal(room)
        trained = rank.backend.model
        assert parameter_hash(load_value_model(room, torch.float32, "eager")) == parameter_hash(trained)
        assert all(np.isfinite(values).all() for values in rank.values(answers).values())
    return YES
