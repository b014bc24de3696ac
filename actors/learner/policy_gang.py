"""Learner ranks that train a policy, which engines serve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import ray

from actors.learner.dpo import DpoLearnerRank
from actors.learner.gang import Gang, RestartableGang
from actors.learner.policy import PolicyLearnerRank
from actors.rollout.pool import RolloutPool
from dvpo_ray.config.dpo import DpoTraining
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import AUTO, OBJECT_STORE, SHARED_MEMORY, ClusterSection, ModelSection, TransferSection
from dvpo_ray.errors import LearnerLostError
from dvpo_ray.learning.ptx import Demonstrations
from dvpo_ray.stages import Handle
from dvpo_ray.types import BucketTargets, StepResult


class WeightSource(Gang):
    """Ranks whose weights go to engines by ``transfer``."""

    transfer: TransferSection
    _rollouts: RolloutPool | None = None

    def connect(self, rollouts: RolloutPool) -> None:
        """Give the engines their weights from now on."""
        self._rollouts = rollouts
        rollouts.source = self.weights

    def weights(self, version: int | None = None) -> GangWeights:
        """The current weights, for the engines, under their own version number or a given one."""
        current, count = self.call("bucket_count", doing="counting buckets")[0]
        if count == 0:
            raise LearnerLostError("the learner has no weights yet: it is being started again")
        return GangWeights(self, current if version is None else version, current, count)

    def way(self) -> str:
        """How weights go: through shared memory when all engines are on the node of rank 0, unless the recipe says how."""
        if self.transfer.backend != AUTO:
            return self.transfer.backend
        together = self._rollouts is None or self._rollouts.nodes() == {self._where[0]}
        return SHARED_MEMORY if together else OBJECT_STORE

    def log_probs(self, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
        """The policy's log-probs of the tokens of responses, as it is now."""
        return list(self.call("log_probs", prompts, responses, None, temperature, doing="reading log-probs")[0])

    def save(self, folder: str, facts: dict[str, object]) -> None:
        """Write the policy as a Hugging Face folder."""
        self.call("save", folder, facts, doing="saving the policy")


class PolicyLearner(WeightSource, RestartableGang):
    """The policy's learner ranks behind the driver's Protocol."""

    rank_class = PolicyLearnerRank
    name = "learner"

    def __init__(
        self,
        model_folder: str,
        model: ModelSection,
        policy: PolicyTraining,
        cluster: ClusterSection,
        seed: int,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        self.transfer = policy.transfer
        self._streaming = policy.streaming
        # Owned by this process, so ranks that are started again find them.
        more = () if demonstrations is None else (ray.put(demonstrations),)
        super().__init__(model_folder, model, policy, cluster, seed, *more)

    def step(self, step: int, beta: float, scored: Iterable[Handle]) -> StepResult:
        """One training step on all ranks; rank 0 speaks for them. When streaming, ranks are given batches as they come."""
        doing = f"training step {step}"
        if not self._streaming:
            return self.call("step", step, beta, *scored, doing=doing)[0]
        given = []
        for batch in scored:
            with self.submitting:
                given += [actor.accumulate.remote(step, beta, batch) for actor in self.actors]
        # Should a rank fail while it accumulates, its error says more than that of a step it never began.
        self.await_calls(given, doing)
        return self.call("finish", step, beta, doing=doing)[0]


@dataclass(frozen=True)
class GangWeights:
    """A version of the policy's weights, held by its learner ranks: what they call ``held`` is sent as ``version``."""

    gang: WeightSource
    version: int
    held: int
    count: int

    def bucket(self, index: int, receivers: BucketTargets) -> Handle:
        """A bucket; all ranks gather it, rank 0 gives it. Its bytes do not pass through this process."""
        doing = f"gathering bucket {index} of weights {self.version}"
        given = (self.version, self.held, index, self.gang.way(), receivers)
        with self.gang.submitting:
            calls = [actor.bucket.options(num_returns=2).remote(*given) for actor in self.gang.actors]
        self.gang.await_calls([done for _, done in calls], doing)
        return calls[0][0]


class DpoLearner(WeightSource, RestartableGang):
    """The learner ranks of a policy that is trained on pairs."""

    rank_class = DpoLearnerRank
    name = "dpo-learner"

    def __init__(
        self, model_folder: str, model: ModelSection, dpo: DpoTraining, cluster: ClusterSection, seed: int, total_steps: int
    ) -> None:
        self.transfer = dpo.transfer
        super().__init__(model_folder, model, dpo, cluster, seed, total_steps)
