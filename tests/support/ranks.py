"""Policy learner ranks in this process, one after the other, on a real model; their backend adds gradients up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.learner.policy import PolicyLearnerRank
from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ModelSection
from dvpo_ray.learning.ptx import Demonstrations
from dvpo_ray.models.lora import add_adapters, set_dropout
from dvpo_ray.models.token_reader import PolicyReader, load_policy
from dvpo_ray.types import Ragged, ScoredBatch
from tests.support.decided import decided
from tests.support.fakes import scored_batch

SEED = 3


def policy(**changes: Any) -> PolicyTraining:
    given = {
        "value_model": "g",
        "data": {"source": "x", "max_prompt_tokens": 16},
        "rollout": {"max_new_tokens": 16, "prompts_per_step": 6, "temperature": 0.7},
        "learner": {"dtype": "float32", "token_budget": 40},
    }
    return decided(build(PolicyRecipe, {"policy": given | changes})).policy


@dataclass
class GradientBackend:
    """Gradients add up in the model, and an optimizer step keeps them and leaves the weights alone."""

    reader: Any
    steps: list[dict[str, Tensor]] = field(default_factory=list)
    ended: bool = False

    @property
    def model(self) -> Any:
        return self.reader.model

    def __call__(self, *given: Any) -> Any:
        return self.reader(*given)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a micro-batch's gradient."""
        assert not self.ended, "a pass after the one marked as the last"
        loss.backward()
        self.ended = last

    def apply(self) -> tuple[float, float]:
        """A step of no length."""
        assert self.ended
        named = self.model.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.requires_grad})
        self.reader.zero_grad(set_to_none=True)
        self.ended = False
        return 1.0, 1.0


def rank_of(
    folder: Path, config: PolicyTraining, rows: Demonstrations | None, rank: int = 0, world: int = 1
) -> PolicyLearnerRank:
    torch.manual_seed(0)
    model = load_policy(folder, torch.float32, "eager")
    if config.lora is not None:
        add_adapters(model, config.lora, folder)
    set_dropout(model, False)
    made = PolicyLearnerRank(rank, world, str(folder), ModelSection(attention="eager"), config, SEED, rows)
    made.backend = GradientBackend(PolicyReader(model, config.rollout.temperature))  # type: ignore[assignment]
    return made


def scored(lengths: list[int], seed: int, version: int) -> ScoredBatch:
    """Rows sampled by weights ``version``."""
    batch = scored_batch(lengths, seed, prefix=f"{seed}-")
    return replace(batch, versions=Ragged(np.full_like(batch.versions.flat, version), batch.versions.lengths))


def train(rank: PolicyLearnerRank, step: int, sampled: int | None = None) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
    """Gradients of every optimizer step, and metrics, of a step on six rows."""
    version = step if sampled is None else sampled
    batches = [scored([3, 9, 5], 4, version), scored([1, 12, 7], 5, version)]
    if rank.policy.streaming:
        for batch in batches:
            rank.accumulate(step, 0.1, batch)
        result = rank.finish(step, 0.1)
    else:
        result = rank.step(step, 0.1, *batches)
    return rank.backend.steps, result.metrics  # type: ignore[attr-defined]
