"""Settings of DVPO's estimators: advantages from the frozen value alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvpo_ray.config.algorithms.base import AlgorithmSettings
from dvpo_ray.config.base import FixedOnResume


class DvpoGae(AlgorithmSettings):
    """Generalised advantage estimation over differences of the frozen value (the default)."""

    implementation = "dvpo_ray.algorithms.dvpo_gae:DvpoGaeAlgorithm"

    type: FixedOnResume[Literal["dvpo_gae"]] = Field("dvpo_gae", description="Selects this kind.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda: 0 trusts the value model most, 1 only its last value.")


class DvpoOnestep(AlgorithmSettings):
    """The one-step difference Q minus V of the frozen value."""

    implementation = "dvpo_ray.algorithms.dvpo_onestep:DvpoOnestepAlgorithm"

    type: FixedOnResume[Literal["dvpo_onestep"]] = Field("dvpo_onestep", description="Selects this kind.")


class DvpoStatic(AlgorithmSettings):
    """The paper's static advantage: the frozen Q itself plus the KL reward-to-go."""

    implementation = "dvpo_ray.algorithms.dvpo_static:DvpoStaticAlgorithm"

    type: FixedOnResume[Literal["dvpo_static"]] = Field("dvpo_static", description="Selects this kind.")


class DvpoReleased(AlgorithmSettings):
    """The recursion of the authors' released code, for replication only: it gives late tokens no credit."""

    implementation = "dvpo_ray.algorithms.dvpo_released:DvpoReleasedAlgorithm"

    type: FixedOnResume[Literal["dvpo_released"]] = Field("dvpo_released", description="Selects this kind.")
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda.")
    whiten_values: bool = Field(True, description="Whiten each answer's values before the recursion, as the release does.")
