"""The rollout actors behind the driver's Protocol: answers as they finish, and weights to all engines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from actors.calls import actor_errors, get, mean_busy_seconds, stop_actors
from actors.placement import engine_environment, start_actor
from actors.rollout import RolloutActor
from dvpo_ray.config.sections import ClusterSection, ModelSection, RolloutSection
from dvpo_ray.errors import ActorFailedError, DamagedWeightsError, WeightSyncError
from dvpo_ray.rows import GenerationRequest, ServedWeights
from dvpo_ray.stages import Handle, Weights

SENDINGS = 3


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
