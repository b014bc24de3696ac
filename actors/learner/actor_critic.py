"""A policy and its online critic: two gangs that take every step together, and are one learner to the driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from actors.learner.critic import CriticRank
from actors.learner.gang import RestartableGang
from actors.learner.policy_gang import GangWeights, PolicyLearner
from actors.rollout.pool import RolloutPool
from dvpo_ray.config.trainers import TrainerSettings
from dvpo_ray.learning.trainer import TrainerContext
from dvpo_ray.stages import Handle
from dvpo_ray.types import StepResult

CRITIC = "critic"


class Critic(RestartableGang):
    """The critic's learner ranks."""

    rank_class = CriticRank
    name = CRITIC

    def values(self, step: int, beta: float, scored: Iterable[Handle]) -> Handle:
        """One batch of all rows, with the critic's values: a handle, whose rows do not pass through this process."""
        batches = list(scored)
        doing = f"reading values of step {step}"
        with self.submitting:
            calls = [actor.values_with_ack.options(num_returns=2).remote(step, beta, *batches) for actor in self.actors]
        self.await_calls([done for _, done in calls], doing)
        return calls[0][0]

    def learn(self, step: int) -> dict[str, float]:
        """One training step on these rows; rank 0 speaks for all."""
        return dict(self.call("learn", step, doing=f"training the critic in step {step}")[0])


class ActorCriticLearner:
    """Policy and critic step, checkpoint and start again together: losing either brings both back to the same checkpoint."""

    def __init__(self, policy: PolicyLearner, critic: Critic) -> None:
        self.policy = policy
        self.critic = critic

    def wait_ready(self) -> None:
        """Wait until every rank of both has its model."""
        self.policy.wait_ready()
        self.critic.wait_ready()

    def restart(self) -> None:
        """End all ranks, dead or not, and start new ones on the models they began with.

        Raises:
            LearnerLostError: one of the new ones is lost.
        """
        self.critic.restart()
        self.policy.restart()

    def step(self, step: int, beta: float, scored: Iterable[Handle]) -> StepResult:
        """Values of the critic as it is, an update of the policy on them, then one of the critic on their returns."""
        result = self.policy.step(step, beta, [self.critic.values(step, beta, scored)])
        return replace(result, metrics=result.metrics | self.critic.learn(step))

    def begin_checkpoint(self, folder: str) -> None:
        """Let every rank of both start writing into one folder."""
        self.policy.begin_checkpoint(folder)
        self.critic.begin_checkpoint(folder)

    def end_checkpoint(self) -> dict[str, str]:
        """Wait until all is written; returns the sha256 of every file."""
        return self.policy.end_checkpoint() | self.critic.end_checkpoint()

    def load_checkpoint(self, folder: str) -> None:
        """Go on from a checkpoint."""
        self.policy.load_checkpoint(folder)
        self.critic.load_checkpoint(folder)

    def draining(self) -> bool:
        """Whether the machine of a rank is about to be taken away."""
        # Both are asked: each must know that losing it is no fault.
        return any([self.policy.draining(), self.critic.draining()])

    def doubts(self) -> list[str]:
        """What speaks against the ranks' settings on their nodes."""
        return [*self.policy.doubts(), *self.critic.doubts()]

    def busy_seconds(self) -> float:
        """Mean time in which a rank of either trained, in seconds, one after the other."""
        return self.policy.busy_seconds() + self.critic.busy_seconds()

    def connect(self, rollouts: RolloutPool) -> None:
        """Give the engines their weights from now on."""
        self.policy.connect(rollouts)

    def weights(self, version: int | None = None) -> GangWeights:
        """The policy's current weights."""
        return self.policy.weights(version)

    def log_probs(self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
        """The policy's log-probs of the tokens of responses, as it is now."""
        return self.policy.log_probs(prompts, responses, temperature)

    def save(self, folder: str, facts: dict[str, object]) -> None:
        """Write the policy as a Hugging Face folder, and the critic beside it."""
        self.policy.save(folder, facts)
        self.critic.call("save", str(Path(folder).with_name(CRITIC)), doing="saving the critic")

    def stop(self) -> None:
        """End both."""
        self.policy.stop()
        self.critic.stop()


def gradient_learner(settings: TrainerSettings, context: TrainerContext) -> PolicyLearner | ActorCriticLearner:
    """The learner of the recipe's algorithm: a critic is there where it trains one."""
    given = (context.model_folder, context.model, context.policy, context.cluster, context.seed)
    learner = PolicyLearner(*given, context.demonstrations)
    return learner if context.policy.advantage.online_critic is None else ActorCriticLearner(learner, Critic(*given))
