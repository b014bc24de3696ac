"""Settings of the advantage estimators, value targets and KL control: unions on `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dvpo_ray.config.base import Section

Whitening = Literal["full", "scale", "none"]


class _Estimator(Section):
    """What all estimators share."""

    whitening: Whitening = Field(
        "full",
        description="Normalise advantages over active tokens of the global batch: mean and variance, scale only, or not.",
    )


class DvpoGae(_Estimator):
    """Generalised advantage estimation over differences of the frozen value (the default)."""

    type: Literal["dvpo_gae"] = "dvpo_gae"
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda: 0 trusts the value model most, 1 only its last value.")


class DvpoOnestep(_Estimator):
    """The one-step difference Q minus V of the frozen value."""

    type: Literal["dvpo_onestep"] = "dvpo_onestep"


class DvpoStatic(_Estimator):
    """The paper's static advantage: the frozen Q itself plus the KL reward-to-go."""

    type: Literal["dvpo_static"] = "dvpo_static"


class DvpoReleased(_Estimator):
    """The recursion of the authors' released code, for replication only: it gives late tokens no credit."""

    type: Literal["dvpo_released"] = "dvpo_released"
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda.")
    whiten_values: bool = Field(True, description="Whiten each answer's values before the recursion, as the release does.")


AdvantageConfig = Annotated[DvpoGae | DvpoOnestep | DvpoStatic | DvpoReleased, Field(discriminator="type")]


class FixedKl(Section):
    """A constant KL coefficient."""

    type: Literal["fixed"] = "fixed"
    coefficient: float = Field(0.02, ge=0, description="KL weight beta, per nat.")


class AdaptiveKl(Section):
    """A KL coefficient steered towards a target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    type: Literal["adaptive"] = "adaptive"
    coefficient: float = Field(0.2, gt=0, description="Initial KL weight beta, per nat.")
    target: float = Field(6.0, gt=0, description="Wanted KL of a whole answer, in nats.")
    horizon: int = Field(10_000, ge=1, description="Answers over which the coefficient follows; larger is slower.")


KlControlConfig = Annotated[FixedKl | AdaptiveKl, Field(discriminator="type")]


class KlSection(Section):
    """Keeping the policy near the reference model."""

    placement: Literal["reward", "loss"] = Field(
        "reward", description="Subtract beta times log-ratio from token rewards, or add beta times the k3 estimate to the loss."
    )
    control: KlControlConfig = Field(default_factory=FixedKl, description="Fixed or adaptive coefficient.")


class PpoUpdateSection(Section):
    """The clipped policy update."""

    clip_range: float = Field(0.2, gt=0, lt=1, description="PPO clip range epsilon of the probability ratio.")
    inner_epochs: int = Field(1, ge=1, description="Passes over a step's answers.")
    mini_batches: int = Field(1, ge=1, description="Optimizer steps of one pass.")
    old_log_probs: Literal["learner", "engine"] = Field(
        "learner", description="Denominator of the ratio: the learner's own log-probs (starts at exactly 1) or the engine's."
    )


class TdTarget(Section):
    """TD(lambda) targets towards the answer's label (the default)."""

    type: Literal["td"] = "td"
    lam: float | Literal["auto"] = Field(
        "auto", description="Lambda of the targets; `auto` takes 0.95 for answers of up to 60 tokens on average, else 1.0."
    )


class McTarget(Section):
    """Monte Carlo targets: every position is trained on the label."""

    type: Literal["mc"] = "mc"


class BtTarget(Section):
    """TD(lambda) plus a Bradley-Terry term on the pair's mean values."""

    type: Literal["bt"] = "bt"
    lam: float | Literal["auto"] = Field("auto", description="Lambda of the TD part, as for `td`.")
    coefficient: float = Field(1.0, gt=0, description="Weight of the Bradley-Terry term.")


TargetConfig = Annotated[TdTarget | McTarget | BtTarget, Field(discriminator="type")]
