"""Settings of a step's updates: the clipped loss, answers of older weights, and what a run warns of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dvpo_ray.config.base import Section


class PpoUpdateSection(Section):
    """The clipped policy update."""

    clip_range: float = Field(0.2, gt=0, lt=1, description="PPO clip range epsilon of the probability ratio.")
    inner_epochs: int = Field(1, ge=1, description="Passes over a step's answers.")
    mini_batches: int = Field(1, ge=1, description="Optimizer steps of one pass.")
    loss_normaliser: Literal["tokens", "limit"] = Field(
        "tokens",
        description="The summed loss is divided by the answer tokens there are, or by those there could be (answers x "
        "rollout.max_new_tokens), which does not change with the answers' lengths.",
    )
    old_log_probs: Literal["learner", "engine"] = Field(
        "learner", description="Denominator of the ratio: the learner's own log-probs (starts at exactly 1) or the engine's."
    )


class OffPolicySection(Section):
    """Training on answers that older weights generated."""

    max_staleness: int = Field(
        0,
        ge=0,
        le=64,
        description="Steps by which a token's weights may be older than those being trained; generation runs so far ahead. "
        "0 is exactly on-policy.",
    )
    correction: Literal["truncated_is", "masked_is", "none"] = Field(
        "truncated_is",
        description="Loss weight of tokens of older weights: the probability ratio of trained to sampling weights, cut at "
        "`max_weight`; the same but 0 outside `1/max_weight..max_weight`; or 1.",
    )
    max_weight: float = Field(2.0, gt=1, description="Largest importance weight of a token.")
    over_limit: Literal["drop", "mask", "correct"] = Field(
        "drop",
        description="Answers with tokens older than `max_staleness`: drop them (counted), leave the old tokens out of the loss, "
        "or train on them with `correction`.",
    )

    @model_validator(mode="after")
    def _validate_correction(self) -> Self:
        if self.over_limit == "correct" and self.correction == "none":
            raise ValueError(
                "over_limit = 'correct' with correction = 'none' would train on tokens of any age as they are: "
                "choose a correction, or over_limit = 'drop' or 'mask'"
            )
        return self


class HealthSection(Section):
    """Numbers of a step that a run warns of, and ends after when they stay."""

    max_log_prob_gap: float = Field(
        0.25, gt=0, description="Mean absolute gap between engine's and learner's log-probs, in nats a token."
    )
    max_kl_per_token: float = Field(2.0, gt=0, description="Log-ratio of policy to reference, in nats a token.")
    min_entropy: float = Field(0.01, ge=0, description="Entropy of the policy, in nats a token.")
    max_cut_share: float | None = Field(
        None, ge=0, lt=1, description="Share of answers cut at `rollout.max_new_tokens`; none never warns."
    )
    stop_after: int = Field(10, ge=0, description="Steps in a row with the same warning after which a run ends; 0 never ends it.")
