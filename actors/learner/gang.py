"""Learner ranks that live and die together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from actors.cluster.calls import get, mean_busy_seconds, stop_actors
from actors.cluster.hosting import end_actor
from actors.cluster.metrics import count
from actors.cluster.nodes import draining
from actors.cluster.session import actor_environment, nodes_for, start_actor
from actors.learner.value import ValueLearnerRank
from dvpo_ray.config.recipes import PairTraining, PolicyTraining
from dvpo_ray.config.sections import ClusterSection, LearnerSection, ModelSection
from dvpo_ray.errors import ActorDiedError, ActorFailedError, LearnerLostError, PermanentFailureError
from dvpo_ray.runs.prometheus import RESTARTS

LOOK_S = 5.0


class Gang:
    """Learner ranks that live and die together."""

    def __init__(self, cluster: ClusterSection, actors: Sequence[Any] = ()) -> None:
        self.actors = list(actors)
        self.cluster = cluster
        # Ranks must be asked for collective work in the same order, whichever thread asks.
        self.submitting = threading.Lock()
        self._starting: list[Any] = []
        self._where: list[str] = []
        self._notified = False

    def draining(self) -> bool:
        """Whether a rank's machine is about to be taken away; when it is, losing the ranks is no fault."""
        self._notified = self._notified or draining(self._where)
        return self._notified

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Whatever happens to one rank happens to the learner: its peers' errors may come before that of the one that died. Only
        what would happen again is not worth starting it again."""
        try:
            yield
        except PermanentFailureError:
            raise
        except ActorFailedError as error:
            raise LearnerLostError(str(error), self._notified or error.preempted, error.sentence) from error

    def begin_start(self) -> None:
        """Let rank 0 name an address, then start all ranks at once."""
        address, port = get(self.actors[0].rendezvous.remote(), self.cluster.start_timeout_s, "learner-0", "starting")
        self._starting = [actor.start.remote(address, port) for actor in self.actors]

    def wait_ready(self) -> None:
        """Wait until every rank has its model."""
        if not self._starting:
            self.begin_start()
        get(self._starting, self.cluster.start_timeout_s, "a learner rank", "loading its model")
        where = [actor.node.remote() for actor in self.actors]
        self._where = get(where, self.cluster.call_timeout_s, "a learner rank", "telling its node")

    def call(self, method: str, *args: Any, doing: str) -> list[Any]:
        """Call a method on every rank; results in rank order."""
        with self.submitting:
            calls = [getattr(actor, method).remote(*args) for actor in self.actors]
        return self.await_calls(calls, doing)

    def await_calls(self, calls: Sequence[Any], doing: str) -> list[Any]:
        """Results of calls on ranks.

        Raises:
            LearnerLostError: a rank died, hangs, or failed for a reason that may pass (it lost its peers).
            PermanentFailureError: a rank failed in a way in which it will fail again.
        """
        with self.lost():
            return get(list(calls), self.cluster.call_timeout_s, "a learner rank", doing)

    def begin_checkpoint(self, folder: str) -> None:
        """Let every rank start writing what it knows; training may go on meanwhile."""
        self.call("begin_checkpoint", folder, doing="beginning a checkpoint")

    def end_checkpoint(self) -> dict[str, str]:
        """Wait until all is written; returns the sha256 of every file."""
        return dict(self.call("end_checkpoint", doing="writing a checkpoint"))

    def load_checkpoint(self, folder: str) -> None:
        """Go on from a checkpoint."""
        self.call("load_checkpoint", folder, doing=f"loading the checkpoint {folder}")

    def doubts(self) -> list[str]:
        """What speaks against the ranks' settings on their nodes."""
        return sorted({text for texts in self.call("doubts", doing="looking at their nodes") for text in texts})

    def busy_seconds(self) -> float:
        """Mean time in which a rank trained, in seconds."""
        return mean_busy_seconds(self.actors, self.cluster, "a learner rank")

    def stop(self) -> None:
        """Leave the process group, then end the actors."""
        stop_actors(self.actors)


class RestartableGang(Gang):
    """Ranks that are started again when one is lost."""

    rank_class: type
    # What its actors' names begin with.
    name: str

    def __init__(
        self,
        model_folder: str,
        model: ModelSection,
        training: PolicyTraining | PairTraining,
        cluster: ClusterSection,
        seed: int,
        *more: Any,
    ) -> None:
        self._arguments = (model_folder, model, training, seed, *more)
        self.max_restarts = training.learner.max_restarts
        self._starts = 0
        super().__init__(cluster)
        self.actors = self._ranks()

    def _ranks(self) -> list[Any]:
        learner = self._arguments[2].learner
        self._starts += 1
        # The name of a dead actor is not free at once.
        name = f"{self.name}-start-{self._starts}" if self._starts > 1 else self.name
        return start_ranks(self.rank_class, name, learner, self.cluster, self.gpu_share(learner), *self._arguments)

    def gpu_share(self, learner: LearnerSection) -> float:
        """What of a GPU each rank reserves: engines and scorers may be on the same."""
        return learner.gpu_share or (1.0 if learner.ranks > 1 else 0.3)

    def restart(self) -> None:
        """End all ranks, dead or not, and start new ones on the base model.

        Raises:
            LearnerLostError: one of the new ones is lost.
        """
        self._renew()
        with self.lost():
            super().wait_ready()

    def wait_ready(self) -> None:
        """Wait until every rank has its model; when one dies while it loads it, all are started again."""
        for left in reversed(range(self.max_restarts + 1)):
            try:
                return super().wait_ready()
            except ActorFailedError:
                if not left or not self._some_died():
                    raise
                self._renew()

    def _some_died(self) -> bool:
        """Whether a rank is dead; what its peers say when they lose it does not tell."""
        calls = [actor.pid.remote() for actor in self.actors]
        for call in ray.wait(calls, num_returns=len(calls), timeout=LOOK_S)[0]:
            try:
                get(call, LOOK_S, "a learner rank", "telling its process")
            except ActorDiedError:
                return True
        return False

    def _renew(self) -> None:
        count(RESTARTS, len(self.actors), stage="learner")
        for actor in self.actors:
            end_actor(actor)
        self.actors, self._starting, self._notified = self._ranks(), [], False


def start_ranks(
    kind: type, name: str, learner: LearnerSection, cluster: ClusterSection, gpu_share: float, *given: Any
) -> list[Any]:
    """The actors of a gang, rank 0 first."""
    environment = actor_environment(learner.cpu_threads, cluster.call_timeout_s)
    where = nodes_for("learner", cluster)
    return [
        start_actor(kind, f"{name}-{i}", environment, gpu_share, **where).remote(i, learner.ranks, *given)
        for i in range(learner.ranks)
    ]


class ValueLearner(RestartableGang):
    """The value model's learner ranks, which have their GPUs to themselves."""

    rank_class = ValueLearnerRank
    name = "value-learner"

    def gpu_share(self, learner: LearnerSection) -> float:
        """A whole one."""
        return 1.0
