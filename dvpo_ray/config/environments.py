"""Settings of environments: what replies to the policy between its turns."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvpo_ray.config.base import Choice, FixedOnResume
from dvpo_ray.registry import Registry

ENVIRONMENTS = Registry("environment", "calculator")
# The name of what an environment gives, among the rewards.
ENVIRONMENT_REWARD = "environment"
# How episodes end that an environment failed in.
CRASHED, TIMEOUT = FAILED_EPISODES = ("crashed", "timeout")


class EnvironmentSettings(Choice):
    """Environment."""

    registry = ENVIRONMENTS

    max_turns: int = Field(2, ge=1, le=100, description="Most turns of the policy; then the episode ends as `turns`.")
    turn_timeout_s: float = Field(30.0, gt=0, description="Longest wait for a reply, in seconds; then it ends as `timeout`.")

    @property
    def gives_rewards(self) -> bool:
        """Whether rows earn something in it, so that a recipe needs no other reward."""
        return True

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of prompts that it cannot do without."""
        return ()

    def longest_s(self, row_timeout_s: float) -> float:
        """The longest that an episode may take beyond one turn of the engine, each of which has this long, in seconds."""
        # Besides a reply to each turn there is a beginning and an end.
        return (self.max_turns - 1) * row_timeout_s + (self.max_turns + 2) * self.turn_timeout_s


class Calculator(EnvironmentSettings):
    """An example: what the policy writes as `<calc>12*7</calc>` is worked out and told; then it answers."""

    implementation = "dvpo_ray.environments.calculator:CalculatorEnvironment"

    type: FixedOnResume[Literal["calculator"]] = Field("calculator", description="Selects this kind.")
    answer_column: str | None = Field(
        None, description="Column of the prompts that holds the right number: an answer that ends with it earns 1, another 0."
    )

    @property
    def gives_rewards(self) -> bool:
        """Only where the right numbers are known."""
        return self.answer_column is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """The one with the right numbers."""
        return () if self.answer_column is None else (self.answer_column,)


ENVIRONMENTS.register("calculator", Calculator)
