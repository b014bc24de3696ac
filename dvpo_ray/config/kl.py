"""Settings of KL control."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from dvpo_ray.config.base import Section, kind_of


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = Field("fixed", description="Selects this kind.")
    coefficient: float = Field(0.02, ge=0, description="KL weight beta, per nat.")


class AdaptiveKl(Section):
    """A KL coefficient steered towards a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    type: Literal["adaptive"] = Field("adaptive", description="Selects this kind.")
    coefficient: float = Field(0.2, gt=0, description="Initial KL weight beta, per nat.")
    target: float = Field(6.0, gt=0, description="Wanted KL of a whole answer, in nats.")
    horizon: int = Field(10_000, ge=1, description="Answers over which the coefficient follows; larger is slower.")


KlControlConfig = Annotated[Annotated[FixedKl, Tag("fixed")] | Annotated[AdaptiveKl, Tag("adaptive")], kind_of("fixed")]


class KlSection(Section):
    """Keeping the policy near the reference model."""

    placement: Literal["reward", "loss"] = Field(
        "reward", description="Subtract beta times log-ratio from token rewards, or add beta times the k3 estimate to the loss."
    )
    control: KlControlConfig = Field(default_factory=FixedKl, description="Fixed or adaptive coefficient.")
