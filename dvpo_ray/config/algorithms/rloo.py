"""Settings of RLOO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvpo_ray.config.algorithms.base import AmongAnswersSettings
from dvpo_ray.config.base import FixedOnResume


class Rloo(AmongAnswersSettings):
    """Leave-one-out advantages (RLOO, arXiv 2402.14740): an answer against the mean of its prompt's other answers."""

    implementation = "dvpo_ray.algorithms.rloo:RlooAlgorithm"

    type: FixedOnResume[Literal["rloo"]] = Field("rloo", description="Selects this kind.")
