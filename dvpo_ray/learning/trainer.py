"""What trains a policy, as a run's driver and its jobs use it, and what it is made from.

A trainer whose work is done by actors hands them the handles that ``step`` is given; one that works in this process reads them by
``context.fetch``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ClusterSection, ModelSection
from dvpo_ray.learning.ptx import Demonstrations
from dvpo_ray.stages import Handle, Learner, Weights
from dvpo_ray.types import ScoredBatch

# What a step's metrics hold at the least: nats an answer from the reference, which adaptive KL control follows, and how far the
# log-probs of engines were from the trainer's own (mean absolute, and the k3 estimate of KL), which results tell.
STEP_METRICS = ("kl/per_answer", "gap/abs_log_prob", "gap/kl_k3")


class Engines(Protocol):
    """Rollout actors, which ask for the policy's weights when one of them is replaced."""

    source: Callable[[], Weights] | None


@dataclass(frozen=True)
class TrainerContext:
    """What a trainer is made from.

    Attributes:
        model_folder: where every node finds the model (``dvpo_ray.models.packaged.folder_of``).
        model: its settings.
        policy: settings of the training.
        cluster: what it may use, and how long it may take.
        seed: of the run.
        demonstrations: good answers for a pretraining loss, where the recipe has one.
        fetch: the scored rows behind handles.
    """

    model_folder: str
    model: ModelSection
    policy: PolicyTraining
    cluster: ClusterSection
    seed: int
    fetch: Callable[[Iterable[Handle]], list[ScoredBatch]]
    demonstrations: Demonstrations | None = None


class Trainer(Learner, Protocol):
    """A learner with all that a job asks of it. It need not back-propagate: a step takes scored rows and makes new weights.

    ``step`` says in its metrics at least ``STEP_METRICS``."""

    def wait_ready(self) -> None:
        """Wait until it can be asked for steps."""
        ...

    def connect(self, rollouts: Engines) -> None:
        """Give the engines their weights from now on, as ``rollouts.source``."""
        ...

    def log_probs(self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
        """Log-probs of the tokens of responses by the weights that ``weights`` gives, each [T]."""
        ...

    def draining(self) -> bool:
        """Whether a machine that it needs is about to be taken away."""
        ...

    def doubts(self) -> list[str]:
        """What speaks against its settings on its nodes."""
        ...

    def busy_seconds(self) -> float:
        """Time in which it had work, in seconds since it started."""
        ...

    def stop(self) -> None:
        """End its processes."""
        ...


def make_trainer(context: TrainerContext) -> Trainer:
    """The trainer that a recipe chooses."""
    trainer: Trainer = context.policy.trainer.build(context)
    return trainer
