"""Settings of value targets: a union on `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from dvpo_ray.config.base import Section, kind_of


class TdTarget(Section):
    """TD(lambda) targets towards the answer's label (the default)."""

    type: Literal["td"] = Field("td", description="Selects this kind.")
    lam: float | Literal["auto"] = Field(
        "auto", description="Lambda of the targets; `auto` takes 0.95 for answers of up to 60 tokens on average, else 1.0."
    )


class McTarget(Section):
    """Monte Carlo targets: every position is trained on the label."""

    type: Literal["mc"] = Field("mc", description="Selects this kind.")


class BtTarget(Section):
    """TD(lambda) plus a Bradley-Terry term on the pair's mean values."""

    type: Literal["bt"] = Field("bt", description="Selects this kind.")
    lam: float | Literal["auto"] = Field("auto", description="Lambda of the TD part, as for `td`.")
    coefficient: float = Field(1.0, gt=0, description="Weight of the Bradley-Terry term.")


class RewardTarget(Section):
    """Bradley-Terry on the pair's last values alone: a reward model, whose values of unfinished answers mean nothing."""

    type: Literal["reward"] = Field("reward", description="Selects this kind.")


TargetConfig = Annotated[
    Annotated[TdTarget, Tag("td")]
    | Annotated[McTarget, Tag("mc")]
    | Annotated[BtTarget, Tag("bt")]
    | Annotated[RewardTarget, Tag("reward")],
    kind_of("td"),
]
