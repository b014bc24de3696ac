"""What the settings of all advantage estimators share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from dvpo_ray.config.base import Choice
from dvpo_ray.registry import Registry

if TYPE_CHECKING:
    from dvpo_ray.config.algorithms.ppo import CriticSection
    from dvpo_ray.config.recipes import PolicyTraining

HERE = "dvpo_ray.config.algorithms"
ALGORITHMS = Registry("advantage estimator", "dvpo_gae")
Whitening = Literal["full", "scale", "none"]


class OnlineCritic(NamedTuple):
    """A second model that is trained beside the policy, and the lambda of its returns."""

    section: CriticSection
    lam: float


class AlgorithmSettings(Choice):
    """Advantage estimator."""

    registry = ALGORITHMS

    # Whether answers of one group are compared.
    compares_answers: ClassVar[bool] = False
    # Whether it learns from `policy.rewards` alone.
    needs_rewards: ClassVar[bool] = False
    # Whether a whole answer has one probability ratio and is one term of the loss, instead of each of its tokens.
    ratio_of_answers: ClassVar[bool] = False

    whitening: Whitening = Field(
        "full",
        description="Normalise advantages over active tokens of the global batch: mean and variance, scale only, or not.",
    )

    @property
    def reads_values(self) -> bool:
        """Whether the frozen value has a part in it."""
        return True

    @property
    def keeps_pairs(self) -> bool:
        """Whether both answers of a pair must be in one micro-batch."""
        return False

    @property
    def online_critic(self) -> OnlineCritic | None:
        """The critic that it trains, if it does."""
        return None

    @property
    def critic_warmup_steps(self) -> int:
        """First steps of a run in which the policy waits for its critic."""
        return 0 if self.online_critic is None else self.online_critic.section.warmup_steps

    def check(self, policy: PolicyTraining) -> None:
        """Refuse other settings of policy training that it cannot work with.

        Raises:
            ValueError: naming both and the remedy.
        """


class AmongAnswersSettings(AlgorithmSettings):
    """Estimators that compare the answers of a prompt."""

    compares_answers: ClassVar[bool] = True
    whitening: Whitening = Field("none", description="As for the others; these are centred already.")
    score: Literal["last", "mean", "none"] = Field(
        "last",
        description="What of the frozen values scores a whole answer: the last, the mean over its tokens, or nothing "
        "(`policy.rewards` alone, and no value model).",
    )

    @property
    def reads_values(self) -> bool:
        """Whether the frozen value has a part in it."""
        return self.score != "none"

    def check(self, policy: PolicyTraining) -> None:
        """Refuse to compare an answer with none."""
        if policy.rollout.answers_per_prompt < 2:
            raise ValueError(
                f"advantage.type = '{self.type}' compares the answers of a prompt: rollout.answers_per_prompt "
                f"({policy.rollout.answers_per_prompt}) must be at least 2"
            )


for name, place in {
    "dvpo_gae": "dvpo:DvpoGae",
    "dvpo_onestep": "dvpo:DvpoOnestep",
    "dvpo_static": "dvpo:DvpoStatic",
    "dvpo_released": "dvpo:DvpoReleased",
    "grpo": "grpo:Grpo",
    "rloo": "rloo:Rloo",
    "p3o": "p3o:P3o",
    "ppo": "ppo:Ppo",
}.items():
    ALGORITHMS.register(name, f"{HERE}.{place}")
