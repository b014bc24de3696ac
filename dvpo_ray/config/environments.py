"""Settings of environments: what replies to the policy between its turns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvpo_ray.config.base import Choice, FixedOnResume
from dvpo_ray.registry import Registry

ENVIRONMENTS = Registry("environment", "calculator")


class EnvironmentSettings(Choice):
    """Environment."""

    registry = ENVIRONMENTS

    max_turns: int = Field(2, ge=1, le=100, description="Most turns of the policy; then the episode ends as `turns`.")
    turn_timeout_s: float = Field(30.0, gt=0, description="Longest wait for a reply, in seconds; then it ends as `timeout`.")


class Calculator(EnvironmentSettings):
    """An example: what the policy writes as `<calc>12*7</calc>` is worked out and told; then it answers."""

    implementation = "dvpo_ray.environments.calculator:CalculatorEnvironment"

    type: FixedOnResume[Literal["calculator"]] = Field("calculator", description="Selects this kind.")
    answer_column: str | None = Field(
        None, description="Column of the prompts that holds the right number: an answer that ends with it earns 1; none earns 0."
    )


ENVIRONMENTS.register("calculator", Calculator)
