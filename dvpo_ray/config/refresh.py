"""Settings of scorer refreshes: when another value model takes the place of the frozen one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvpo_ray.config.base import Choice, FixedOnResume
from dvpo_ray.registry import Registry

REFRESHES = Registry("scorer refresh", "never")


class RefreshSettings(Choice):
    """Scorer refresh."""

    registry = REFRESHES


class Never(RefreshSettings):
    """The value model stays frozen for the whole run (the default)."""

    implementation = "dvpo_ray.rollouts.refresh:NeverRefresh"

    type: FixedOnResume[Literal["never"]] = Field("never", description="Selects this kind.")


REFRESHES.register("never", Never)
