"""Settings of rollout plans: which rows a step asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dvpo_ray.config.base import Choice, FixedOnResume
from dvpo_ray.config.sections import AnswersSection
from dvpo_ray.registry import Registry

if TYPE_CHECKING:
    from dvpo_ray.config.recipes import PolicyTraining

PLANS = Registry("rollout plan", "shuffled")


class PlanSettings(Choice):
    """Rollout plan."""

    registry = PLANS

    # Whether answers may begin with tokens that the policy did not write.
    forces_tokens: ClassVar[bool] = False

    def check(self, policy: PolicyTraining) -> None:
        """Refuse other settings of policy training that it cannot work with.

        Raises:
            ValueError: naming both and the remedy.
        """


class Shuffled(PlanSettings):
    """Every prompt once an epoch, in an order drawn anew for each (the default)."""

    implementation = "dvpo_ray.rollouts.shuffled:ShuffledPlan"

    type: FixedOnResume[Literal["shuffled"]] = Field("shuffled", description="Selects this kind.")


class Resets(PlanSettings):
    """Like `shuffled`, but some prompts are answered from within a good answer: what comes before is given, and carries no loss
    (DR-PO, arXiv 2404.08495)."""

    implementation = "dvpo_ray.rollouts.resets:ResetsPlan"
    forces_tokens: ClassVar[bool] = True

    type: FixedOnResume[Literal["resets"]] = Field("resets", description="Selects this kind.")
    data: FixedOnResume[AnswersSection] = Field(
        description="Good answers: pairs, whose chosen answers are taken, or demonstrations. Used are those to the prompts of "
        "`policy.data`."
    )
    fraction: FixedOnResume[float] = Field(
        0.5, ge=0, le=1, description="Share of the prompts with a good answer that are answered from within it."
    )

    def check(self, policy: PolicyTraining) -> None:
        """Refuse prefixes that could fill a whole answer."""
        if policy.rollout.max_new_tokens < 2:
            raise ValueError("plan.type = 'resets' needs room after a prefix: raise rollout.max_new_tokens to at least 2")


PLANS.register("shuffled", Shuffled)
PLANS.register("resets", Resets)
