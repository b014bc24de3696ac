"""What trains a policy, as a run's driver and its jobs use it, and what it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actors.rollout.pool import RolloutPool
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import ClusterSection, ModelSection
from dvpo_ray.learning.ptx import Demonstrations
from dvpo_ray.stages import Learner


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
    """

    model_folder: str
    model: ModelSection
    policy: PolicyTraining
    cluster: ClusterSection
    seed: int
    demonstrations: Demonstrations | None = None


class Trainer(Learner, Protocol):
    """A learner with all that a job asks of it. It need not back-propagate: a step takes scored rows and makes new weights."""

    def wait_ready(self) -> None:
        """Wait until it can be asked for steps."""
        ...

    def connect(self, rollouts: RolloutPool) -> None:
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
