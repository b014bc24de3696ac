"""Settings of PPO and its online critic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dvpo_ray.config.algorithms.base import AlgorithmSettings, OnlineCritic
from dvpo_ray.config.base import FixedOnResume, ModelFolder, Section

if TYPE_CHECKING:
    from dvpo_ray.config.recipes import PolicyTraining


class CriticSection(Section):
    """The online critic: a second model, trained on every step's returns. Its ranks are laid out as those of `learner`."""

    initial: ModelFolder | None = Field(
        None, description="Folder of a value model or reward model to start from; none grows the critic from the model itself."
    )
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    clip_range: float = Field(
        0.0,
        ge=0,
        description="How far a value may move in an update before its loss is clipped; 0 does not clip. Of preset `max`: 0.2.",
    )
    warmup_steps: int = Field(
        0, ge=0, description="First steps of a run in which the critic alone is trained. Of preset `max`: 2."
    )


class Ppo(AlgorithmSettings):
    """Proximal policy optimisation with rewards of whole answers and an online critic (arXiv 1707.06347), the rival of DVPO."""

    implementation = "dvpo_ray.algorithms.ppo:PpoAlgorithm"

    needs_rewards: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "plain": {"advantage": {}, "critic": {}},
        "max": {
            "advantage": {"normalise_rewards": True, "clip_rewards": 5.0},
            "critic": {"clip_range": 0.2, "warmup_steps": 2},
        },
    }

    @property
    def reads_values(self) -> bool:
        """The frozen value has no part in it."""
        return False

    @property
    def online_critic(self) -> OnlineCritic:
        """The critic, which is given returns of the same lambda as the advantages."""
        return OnlineCritic(self.critic, self.lam)

    type: FixedOnResume[Literal["ppo"]] = Field("ppo", description="Selects this kind.")
    preset: Literal["max", "plain"] = Field(
        "max",
        description="`max` switches on what PPO-max (arXiv 2307.04964) found to matter, as far as it is not set here; `plain` "
        "nothing.",
    )
    lam: float = Field(0.95, ge=0, le=1, description="GAE lambda, of advantages and of the critic's returns.")
    normalise_rewards: bool = Field(
        False, description="Rewards of whole answers less their running mean, by their running deviation. Of preset `max`: true."
    )
    clip_rewards: float = Field(
        0.0, ge=0, description="Largest size of a reward after that; 0 does not clip. Of preset `max`: 5."
    )
    critic: CriticSection = Field(default_factory=CriticSection, description="The online critic.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        preset = cls.PRESETS.get(tree.get("preset", "max"))
        if preset is None:
            return tree
        critic = tree.get("critic", {})
        return preset["advantage"] | tree | {"critic": preset["critic"] | critic if isinstance(critic, dict) else critic}

    def check(self, policy: PolicyTraining) -> None:
        """Refuse to leave the policy no step."""
        if self.critic_warmup_steps >= policy.steps:
            raise ValueError(
                f"advantage.critic.warmup_steps ({self.critic_warmup_steps}) leaves the policy none of the "
                f"{policy.steps} steps: lower it, or raise steps"
            )
