"""Settings of GRPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvpo_ray.config.algorithms.base import AmongAnswersSettings
from dvpo_ray.config.base import FixedOnResume


class Grpo(AmongAnswersSettings):
    """Group-relative advantages (GRPO, arXiv 2402.03300): an answer against the mean and spread of its prompt's answers."""

    implementation = "dvpo_ray.algorithms.grpo:GrpoAlgorithm"

    type: FixedOnResume[Literal["grpo"]] = Field("grpo", description="Selects this kind.")
    normalise: Literal["std", "none"] = Field(
        "std", description="Divide scores by their standard deviation in the group, or not (Dr. GRPO, arXiv 2503.20783)."
    )
