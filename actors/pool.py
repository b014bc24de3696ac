"""Pools of actors behind the driver's stage Protocols: starting, streaming, deadlines, and errors that name the actor."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.placement import actor_environment, engine_environment, start_actor
from actors.policy_learner import PolicyLearnerRank
from actors.rollout import RolloutActor
from actors.scorer import ScorerActor
from actors.value_learner import ValueLearnerRank
from dvpo_ray.config.recipes import PolicyTraining, ValueTraining
from dvpo_ray.config.sections import ClusterSection, ModelSection, RolloutSection, ScorerSection
from dvpo_ray.errors import ActorFailedError, DamagedWeightsError, DvpoError, WeightSyncError
from dvpo_ray.rows import GenerationRequest, ScoredBatch, ServedWeights, StepResult
from dvpo_ray.stages import Handle, Weights

SENDINGS = 3


@contextmanager
def actor_errors(who: str, doing: str) -> Iterator[None]:
    """Turn Ray's errors into ours, naming the actor and what it was doing."""
    try:
        yield
    except GetTimeoutError as error:
        raise ActorFailedError(
            f"{who} did not finish {doing} in time; raise cluster.call_timeout_s if the work is that long, else look at its log"
        ) from error
    except RayTaskError as error:
        if isinstance(error.cause, DvpoError):
            raise error.cause from error
        raise ActorFailedError(f"{who} failed while {doing}: {error.cause!r}") from error
    except RayActorError as error:
        raise ActorFailedError(f"{who} died while {doing}: {_first_and_last_line(error)}") from error
    except RayError as error:
        raise ActorFailedError(f"{who}: Ray failed while {doing}: {_first_and_last_line(error)}") from error


def _first_and_last_line(error: RayError) -> str:
    """What Ray says happened and why, without the table between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([lines[0], lines[-1]])) if lines else repr(error)


def get(refs: Any, timeout: float, who: str, doing: str) -> Any:
    """``ray.get`` with a deadline and our errors."""
    with actor_errors(who, doing):
        return ray.get(refs, timeout=timeout)


def mean_busy_seconds(actors: Sequence[Any], cluster: ClusterSection, who: str) -> float:
    """What the actors say of their busy time, averaged."""
    seconds = get([actor.busy_seconds.remote() for actor in actors], cluster.call_timeout_s, who, "telling its busy time")
    return sum(seconds) / len(seconds)


class RolloutPool:
    """Rollout actors; requests are dealt out in turn."""

    def __init__(
        self, model_folder: str, model: ModelSection, rollout: RolloutSection, cluster: ClusterSection, seed: int
    ) -> None:
        self._cluster = cluster
        self._timeout = rollout.row_timeout_s + cluster.call_timeout_s
        environment = engine_environment(rollout.cpu_threads)
        shards = rollout.engine.tensor_parallel
        gpus = shards if shards > 1 else rollout.gpu_share or rollout.engine.gpu_memory_utilization
        self._actors = [
            start_actor(RolloutActor, f"rollout-{i}", environment, gpus, max_concurrency=1000).remote(
                model_folder, rollout, seed + i, model.trust_remote_code
            )
            for i in range(rollout.actors)
        ]
        self._starting = [actor.start.remote() for actor in self._actors]
        self.checksums: dict[str, str] = {}

    def wait_ready(self) -> str:
        """Wait for all engines; returns the weights' checksum, which all must share."""
        checksums = get(self._starting, self._cluster.start_timeout_s, "a rollout actor", "starting its engine")
        return self._agree(checksums, "the starting weights")

    def nodes(self) -> set[str]:
        """Ids of the Ray nodes that the engines are on."""
        calls = [actor.node.remote() for actor in self._actors]
        return set(get(calls, self._cluster.call_timeout_s, "a rollout actor", "telling its node"))

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Handle]:
        """One answer handle for each request, as they finish on any engine."""
        count = len(self._actors)
        streams = {
            actor.generate.options(num_returns="streaming").remote(list(requests[i::count])): f"rollout-{i}"
            for i, actor in enumerate(self._actors)
            if requests[i::count]
        }
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=self._timeout, fetch_local=False)
            if not ready:
                raise ActorFailedError(f"{', '.join(streams.values())}: no answer within {self._timeout} s")
            stream = ready[0]
            with actor_errors(streams[stream], "generating"):
                try:
                    handle = next(stream)
                except StopIteration:
                    del streams[stream]
                    continue
                # A failed generator hands out its exception as the last item.
                ray.get(handle, timeout=self._cluster.call_timeout_s)
            yield handle

    def sync(self, weights: Weights) -> ServedWeights:
        """Load a version into every engine, a bucket at a time; all must report the same checksum. Returns the slowest's."""
        served: list[ServedWeights] = []
        for index in range(weights.count):
            served = self._load_bucket(weights, index)
        known = {(one.version, one.payload) for one in served}
        if len(known) != 1:
            raise WeightSyncError(f"rollout actors took different payloads for weights {weights.version}: {sorted(known)}")
        self._agree([one.checksum for one in served], f"version {weights.version}", served[0].payload)
        return max(served, key=lambda one: one.seconds)

    def _load_bucket(self, weights: Weights, index: int) -> list[Any]:
        """Have every engine load a bucket; one that found it damaged is sent it again."""
        waiting = dict(enumerate(self._actors))
        served: dict[int, Any] = {}
        for attempt in range(SENDINGS):
            bucket = weights.bucket(index)
            calls = {i: actor.load_bucket.remote(bucket) for i, actor in waiting.items()}
            for i, call in calls.items():
                try:
                    timeout = self._cluster.call_timeout_s
                    served[i] = get(call, timeout, f"rollout-{i}", f"loading bucket {index} of weights {weights.version}")
                    del waiting[i]
                except DamagedWeightsError as error:
                    if attempt + 1 == SENDINGS:
                        self._give_up(index)
                        raise
                    logging.getLogger(__name__).warning("rollout-%d: %s; it is sent again", i, error)
            if not waiting:
                break
        return [served[i] for i in sorted(served)]

    def _give_up(self, index: int) -> None:
        """Engines that had begun an update stay fenced; those that had not go on with what they serve."""
        if index > 0:
            calls = [actor.abandon_update.remote() for actor in self._actors]
            get(calls, self._cluster.call_timeout_s, "a rollout actor", "abandoning an update")

    def busy_seconds(self) -> float:
        """Mean time in which an engine had answers under way, in seconds."""
        return mean_busy_seconds(self._actors, self._cluster, "a rollout actor")

    def stop(self) -> None:
        """Shut the engines down, then the actors."""
        stop_actors(self._actors)

    def _agree(self, checksums: Sequence[str], what: str, payload: str = "") -> str:
        known = self.checksums.setdefault(payload, checksums[0]) if payload else checksums[0]
        for i, checksum in enumerate(checksums):
            if checksum != known:
                raise WeightSyncError(
                    f"rollout-{i} serves other weights than expected for {what}: {checksum[:16]}..., not {known[:16]}..."
                )
        return known


class ScorerPool:
    """Scorer actors; batches are dealt out in turn."""

    def __init__(
        self,
        model_folder: str,
        value_model: str | None,
        model: ModelSection,
        scorer: ScorerSection,
        temperature: float,
        cluster: ClusterSection,
    ) -> None:
        self._config = scorer
        self._cluster = cluster
        environment = actor_environment(scorer.cpu_threads)
        retries = {"max_restarts": scorer.max_restarts, "max_task_retries": scorer.max_restarts}
        self._actors = [
            start_actor(ScorerActor, f"scorer-{i}", environment, scorer.gpu_share, **retries).remote(
                model_folder, value_model, model, scorer, temperature
            )
            for i in range(scorer.actors)
        ]
        self._starting = [actor.start.remote() for actor in self._actors]
        self._next = 0

    def wait_ready(self) -> str:
        """Wait for all scorers; returns the value model's parameter hash."""
        return self._same(get(self._starting, self._cluster.start_timeout_s, "a scorer", "loading its models"))

    def score(self, answers: Iterable[Handle]) -> Iterator[Handle]:
        """Scored-batch handles, each as soon as its ``rows_per_call`` answers are there and sent off."""
        waiting: list[Handle] = []
        for answer in answers:
            waiting.append(answer)
            if len(waiting) == self._config.rows_per_call:
                yield self._send(waiting)
                waiting = []
        if waiting:
            yield self._send(waiting)

    def wait(self, handles: Sequence[Handle]) -> None:
        """Wait until these batches are scored."""
        timeout = self._cluster.call_timeout_s
        _, late = ray.wait(list(handles), num_returns=len(handles), timeout=timeout, fetch_local=False)
        if late:
            raise ActorFailedError(f"{len(late)} of {len(handles)} batches were not scored within {timeout} s")

    def fetch(self, handles: Iterable[Handle]) -> list[ScoredBatch]:
        """The scored rows behind handles."""
        return get(list(handles), self._cluster.call_timeout_s, "a scorer", "scoring")

    def value_hash(self) -> str:
        """Parameter hash of the frozen value model, as it is in memory now."""
        calls = [actor.parameter_hash.remote() for actor in self._actors]
        return self._same(get(calls, self._cluster.call_timeout_s, "a scorer", "hashing its value model"))

    def busy_seconds(self) -> float:
        """Mean time in which a scorer scored, in seconds."""
        return mean_busy_seconds(self._actors, self._cluster, "a scorer")

    def stop(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)

    def _send(self, answers: list[Handle]) -> Handle:
        actor = self._actors[self._next % len(self._actors)]
        self._next += 1
        return actor.score.remote(*answers)

    @staticmethod
    def _same(hashes: Sequence[str]) -> str:
        if len(set(hashes)) != 1:
            raise ActorFailedError(f"scorers hold different value models: {sorted({h[:16] for h in hashes})}")
        return hashes[0]


class Gang:
    """Learner ranks that live and die together."""

    def __init__(self, actors: list[Any], cluster: ClusterSection) -> None:
        self.actors = actors
        self.cluster = cluster
        self._starting: list[Any] = []

    def begin_start(self) -> None:
        """Let rank 0 name an address, then start all ranks at once."""
        address, port = get(self.actors[0].rendezvous.remote(), self.cluster.start_timeout_s, "learner-0", "starting")
        self._starting = [actor.start.remote(address, port) for actor in self.actors]

    def wait_ready(self) -> None:
        """Wait until every rank has its model."""
        if not self._starting:
            self.begin_start()
        get(self._starting, self.cluster.start_timeout_s, "a learner rank", "loading its model")

    def call(self, method: str, *args: Any, doing: str) -> list[Any]:
        """Call a method on every rank; results in rank order."""
        calls = [getattr(actor, method).remote(*args) for actor in self.actors]
        return get(calls, self.cluster.call_timeout_s, "a learner rank", doing)

    def busy_seconds(self) -> float:
        """Mean time in which a rank trained, in seconds."""
        return mean_busy_seconds(self.actors, self.cluster, "a learner rank")

    def stop(self) -> None:
        """Leave the process group, then end the actors."""
        stop_actors(self.actors)


class PolicyLearner(Gang):
    """The policy's learner ranks."""

    def __init__(
        self,
        model_folder: str,
        model: ModelSection,
        policy: PolicyTraining,
        cluster: ClusterSection,
        seed: int,
    ) -> None:
        learner = policy.learner
        self._backend = policy.transfer.backend
        self._shared = self._backend != "object_store"
        self._streaming = policy.streaming
        environment = actor_environment(learner.cpu_threads)
        share = learner.gpu_share or (1.0 if learner.ranks > 1 else 0.3)
        actors = [
            start_actor(PolicyLearnerRank, f"learner-{i}", environment, share).remote(
                i, learner.ranks, model_folder, model, policy, seed
            )
            for i in range(learner.ranks)
        ]
        super().__init__(actors, cluster)

    def step(self, step: int, beta: float, scored: Iterable[Handle]) -> StepResult:
        """One training step on all ranks; rank 0 speaks for them. When streaming, ranks are given batches as they come."""
        doing = f"training step {step}"
        if not self._streaming:
            return self.call("step", step, beta, *scored, doing=doing)[0]
        given = [actor.accumulate.remote(step, beta, batch) for batch in scored for actor in self.actors]
        # Should a rank fail while it accumulates, its error says more than that of a step it never began.
        get(given, self.cluster.call_timeout_s, "a learner rank", doing)
        return self.call("finish", step, beta, doing=doing)[0]

    def connect(self, rollouts: RolloutPool) -> None:
        """Send weights through shared memory when all engines are on the node of rank 0, unless the recipe says how."""
        if self._backend == "auto":
            here = get(self.actors[0].node.remote(), self.cluster.call_timeout_s, "learner-0", "telling its node")
            self._shared = rollouts.nodes() == {here}

    def weights(self, version: int) -> GangWeights:
        """The current weights, for the engines."""
        count = self.call("bucket_count", doing="counting buckets")[0]
        return GangWeights(self, version, count, self._shared)

    def save(self, folder: str, facts: dict[str, object]) -> None:
        """Write the policy as a Hugging Face folder."""
        self.call("save", folder, facts, doing="saving the policy")


@dataclass(frozen=True)
class GangWeights:
    """A version of the policy's weights, held by its learner ranks."""

    gang: Gang
    version: int
    count: int
    shared: bool

    def bucket(self, index: int) -> Handle:
        """A bucket; all ranks gather it, rank 0 gives it. Its bytes do not pass through this process."""
        doing = f"gathering bucket {index} of weights {self.version}"
        calls = [actor.bucket.options(num_returns=2).remote(self.version, index, self.shared) for actor in self.gang.actors]
        get([done for _, done in calls], self.gang.cluster.call_timeout_s, "a learner rank", doing)
        return calls[0][0]


def value_gang(
    model_folder: str, model: ModelSection, value: ValueTraining, cluster: ClusterSection, seed: int, total_steps: int
) -> Gang:
    """The value model's learner ranks."""
    learner = value.learner
    environment = actor_environment(learner.cpu_threads)
    actors = [
        start_actor(ValueLearnerRank, f"value-learner-{i}", environment, 1.0).remote(
            i, learner.ranks, model_folder, model, value, seed, total_steps
        )
        for i in range(learner.ranks)
    ]
    return Gang(actors, cluster)


def stop_actors(actors: Sequence[Any], timeout: float = 30.0) -> None:
    """Ask actors to stop; end those that are dead already or do not answer."""
    calls = [actor.stop.remote() for actor in actors]
    ray.wait(calls, num_returns=len(calls), timeout=timeout)
    for actor in actors:
        ray.kill(actor)
