"""Settings of P3O."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dvpo_ray.config.algorithms.base import AmongAnswersSettings
from dvpo_ray.config.base import FixedOnResume

if TYPE_CHECKING:
    from dvpo_ray.config.recipes import PolicyTraining


class P3o(AmongAnswersSettings):
    """Pairwise PPO (P3O, arXiv 2310.00212): what an answer's reward is above that of another of its prompt, and one probability
    ratio for a whole answer."""

    implementation = "dvpo_ray.algorithms.p3o:P3oAlgorithm"

    ratio_of_answers: ClassVar[bool] = True

    @property
    def keeps_pairs(self) -> bool:
        """The ratio of a pair can only be clipped when both answers are there."""
        return self.clip == "joint"

    type: FixedOnResume[Literal["p3o"]] = Field("p3o", description="Selects this kind.")
    clip: Literal["separate", "joint"] = Field(
        "separate", description="Clip the ratio of each answer (the paper's V1), or that of a pair (V2)."
    )
    length_normalised: bool = Field(False, description="Take the ratio of a token on average instead of the whole answer's.")

    def check(self, policy: PolicyTraining) -> None:
        """Refuse what would take pairs, or answers, apart."""
        super().check(policy)
        budget, needed = policy.learner.token_budget, 2 * policy.longest_row
        if self.keeps_pairs and budget != "auto" and needed > budget:
            raise ValueError(
                f"advantage.clip = 'joint' keeps both answers of a pair in a micro-batch: learner.token_budget "
                f"({budget}) must be at least {needed}"
            )
        answers, staleness = policy.rollout.answers_per_prompt, policy.off_policy.max_staleness
        wrong = [
            (answers % 2, f"rollout.answers_per_prompt = {answers} is odd"),
            (staleness, f"off_policy.max_staleness = {staleness} is not 0"),
            (self.whitening == "full", "advantage.whitening = 'full' would take pairs apart"),
            (policy.kl.placement != "reward", f"kl.placement = '{policy.kl.placement}' is not 'reward'"),
            (policy.ppo.loss_normaliser != "tokens", f"ppo.loss_normaliser = '{policy.ppo.loss_normaliser}' is not 'tokens'"),
        ]
        if found := [what for is_so, what in wrong if is_so]:
            raise ValueError(f"advantage.type = 'p3o' takes pairs of whole answers, but {' and '.join(found)}")
