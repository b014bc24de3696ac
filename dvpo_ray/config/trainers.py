"""Settings of trainers: how a policy learns from scored rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvpo_ray.config.base import Choice, FixedOnResume
from dvpo_ray.registry import Registry

TRAINERS = Registry("trainer", "gradient")


class TrainerSettings(Choice):
    """Trainer."""

    registry = TRAINERS


class Gradient(TrainerSettings):
    """Gradients of the algorithm's loss, on the ranks of `policy.learner` (the default)."""

    implementation = "actors.learner.actor_critic:gradient_learner"

    type: FixedOnResume[Literal["gradient"]] = Field("gradient", description="Selects this kind.")


TRAINERS.register("gradient", Gradient)
