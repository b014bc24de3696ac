"""The scorer actors behind the driver's Protocol: as many as the work asks for, and none that still has work is taken away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from actors.cluster.calls import get, mean_busy_seconds
from actors.cluster.hosting import end_actor
from actors.cluster.metrics import show
from actors.cluster.session import actor_environment, nodes_for, start_actor
from actors.scorer.actor import ScorerActor
from actors.scorer.scaling import Load, least_loaded, queue_age, to_remove
from dvpo_ray.config.rewards import RewardSettings
from dvpo_ray.config.sections import ClusterSection, ModelSection, ScorerSection
from dvpo_ray.errors import ActorFailedError
from dvpo_ray.runs.prometheus import QUEUE_AGE, SCORERS
from dvpo_ray.stages import Handle
from dvpo_ray.types import ScoredBatch, ScorerVersion

TICK_S = 0.25


class Replica:
    """One scorer actor and the batches it was given."""

    def __init__(self, actor: Any, name: str) -> None:
        self.actor = actor
        self.name = name
        self.starting = actor.start.remote()
        self.load = Load(idle_since=time.monotonic())
        self._batches: list[Handle] = []

    def send(self, answers: Sequence[Handle], version: ScorerVersion | None) -> tuple[Handle, Handle]:
        """Give it a batch; returns the scored batch, and what says that it is there or why not."""
        batch, done = self.actor.score_with_ack.options(num_returns=2).remote(version, *answers)
        self._batches.append(batch)
        self.load.sent.append(time.monotonic())
        self.load.idle_since = None
        return batch, done

    def look(self) -> None:
        """Find out what is done."""
        if not self._batches:
            return
        done = set(ray.wait(self._batches, num_returns=len(self._batches), timeout=0, fetch_local=False)[0])
        under_way = [(batch, sent) for batch, sent in zip(self._batches, self.load.sent, strict=True) if batch not in done]
        self._batches, self.load.sent = [batch for batch, _ in under_way], [sent for _, sent in under_way]
        if not under_way:
            self.load.idle_since = time.monotonic()


class ScorerPool:
    """``scorer.actors`` to ``scorer.max_actors`` scorers; a batch goes to the one with the least work.

    A thread looks after their number: it starts one more when a batch has waited for ``scale_up_after_s``, and ends one that
    has been without work for ``scale_down_after_s``. What it scored stays in the object store.
    """

    def __init__(
        self,
        model_folder: str,
        value_model: str | None,
        model: ModelSection,
        scorer: ScorerSection,
        temperature: float,
        cluster: ClusterSection,
        rewards: Mapping[str, RewardSettings] | None = None,
    ) -> None:
        self._arguments = (model_folder, value_model, model, scorer, temperature, rewards)
        self._config = scorer
        self._cluster = cluster
        self._started = 0
        self._lock = threading.Lock()
        self._replicas = [self._start() for _ in range(scorer.actors)]
        self._coming: Replica | None = None
        self._failure: BaseException | None = None
        self._done: dict[Handle, Handle] = {}
        self._asking = 0
        self._hashes: dict[str, str] = {}
        self._stopping = threading.Event()
        self._keeper: threading.Thread | None = None

    def wait_ready(self) -> dict[str, str]:
        """Wait for all scorers; returns the parameter hashes of their models, by name."""
        starting = [replica.starting for replica in self._replicas]
        self._hashes = self._same(get(starting, self._cluster.start_timeout_s, "a scorer", "loading its models"))
        if (self._config.max_actors or 0) > self._config.actors:
            self._keeper = threading.Thread(target=self._keep, name="scorers", daemon=True)
            self._keeper.start()
        return self._hashes

    @property
    def size(self) -> int:
        """Scorers that take batches now."""
        return len(self._replicas)

    def score(self, answers: Iterable[Handle], version: ScorerVersion | None = None) -> Iterator[Handle]:
        """Scored-batch handles, each as soon as its ``rows_per_call`` answers are there and sent off. Values are those of the
        recipe's value model, or of a later ``version``."""
        waiting: list[Handle] = []
        sent: list[Handle] = []
        try:
            for answer in answers:
                waiting.append(answer)
                if len(waiting) == self._config.rows_per_call:
                    sent.append(self._send(waiting, version))
                    waiting = []
                    yield sent[-1]
            if waiting:
                sent.append(self._send(waiting, version))
                yield sent[-1]
        except BaseException:
            # Nobody will wait for these.
            with self._lock:
                for batch in sent:
                    self._done.pop(batch, None)
            raise

    def wait(self, handles: Sequence[Handle]) -> None:
        """Wait until these batches are scored."""
        with self._lock:
            done = [self._done.pop(handle) for handle in handles]
        get(done, self._cluster.call_timeout_s, "a scorer", "scoring")

    def fetch(self, handles: Iterable[Handle]) -> list[ScoredBatch]:
        """The scored rows behind handles."""
        handles = list(handles)
        with self._lock:
            for handle in handles:
                self._done.pop(handle, None)
        return get(list(handles), self._cluster.call_timeout_s, "a scorer", "scoring")

    def value_hash(self, version: ScorerVersion | None = None) -> dict[str, str]:
        """Parameter hashes by name: of the frozen value model, or of a later ``version``, under ``value``, and of reward models.

        Raises:
            ActorFailedError: scorers hold different models.
        """
        with self._all() as actors:
            calls = [actor.parameter_hash.remote(version) for actor in actors]
            return self._same(get(calls, self._cluster.call_timeout_s, "a scorer", "hashing its models"))

    def doubts(self) -> list[str]:
        """What speaks against the scorers' settings on their nodes."""
        with self._all() as actors:
            calls = [actor.doubts.remote() for actor in actors]
            found = get(calls, self._cluster.call_timeout_s, "a scorer", "looking at its node")
        return sorted({text for texts in found for text in texts})

    def busy_seconds(self) -> float:
        """Mean time in which a scorer scored, in seconds."""
        with self._all() as actors:
            return mean_busy_seconds(actors, self._cluster, "a scorer")

    def cache_hits(self) -> int:
        """Answers that were not scored again because their scores were known."""
        with self._all() as actors:
            return sum(get([a.cache_hits.remote() for a in actors], self._cluster.call_timeout_s, "a scorer", "telling hits"))

    def stop(self) -> None:
        """End the actors."""
        self._stopping.set()
        if self._keeper is not None:
            self._keeper.join()
        for replica in [*self._replicas, *([self._coming] if self._coming else [])]:
            end_actor(replica.actor)

    @contextmanager
    def _all(self) -> Iterator[list[Any]]:
        """The actors there are; none is ended within the block."""
        with self._lock:
            self._asking += 1
            actors = [replica.actor for replica in self._replicas]
        try:
            yield actors
        finally:
            with self._lock:
                self._asking -= 1

    def _start(self) -> Replica:
        name = f"scorer-{self._started}"
        self._started += 1
        config = self._config
        retries = {"max_restarts": config.max_restarts, "max_task_retries": config.max_restarts}
        options = retries | nodes_for("scorer", self._cluster)
        environment = actor_environment(config.cpu_threads, self._cluster.call_timeout_s)
        kind = start_actor(ScorerActor, name, environment, config.gpu_share, **options)
        return Replica(kind.remote(*self._arguments), name)

    def _send(self, answers: list[Handle], version: ScorerVersion | None) -> Handle:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            for replica in self._replicas:
                replica.look()
            show(QUEUE_AGE, queue_age([replica.load for replica in self._replicas], time.monotonic()))
            show(SCORERS, len(self._replicas))
            batch, done = self._replicas[least_loaded([replica.load for replica in self._replicas])].send(answers, version)
            self._done[batch] = done
            return batch

    def _keep(self) -> None:
        """Look after the number of scorers until the pool stops."""
        while not self._stopping.wait(TICK_S):
            try:
                self._welcome()
                self._resize()
            except BaseException as error:
                self._failure = error
                return

    def _welcome(self) -> None:
        """Let a new scorer take part once it has loaded its models, if they are those of the others."""
        if self._coming is None or not ray.wait([self._coming.starting], timeout=0)[0]:
            return
        found = get(self._coming.starting, self._cluster.start_timeout_s, self._coming.name, "loading its models")
        self._same([self._hashes, found])
        with self._lock:
            self._coming.load.idle_since = time.monotonic()
            self._replicas.append(self._coming)
            self._coming = None

    def _resize(self) -> None:
        """One more or one fewer."""
        config = self._config
        assert config.max_actors is not None
        with self._lock:
            for replica in self._replicas:
                replica.look()
            loads, now = [replica.load for replica in self._replicas], time.monotonic()
            if self._coming is None and len(loads) < config.max_actors and queue_age(loads, now) > config.scale_up_after_s:
                self._coming = self._start()
            leaving = None if self._asking else to_remove(loads, now, config.actors, config.scale_down_after_s)
            gone = self._replicas.pop(leaving) if leaving is not None else None
        if gone is not None:
            end_actor(gone.actor)

    @staticmethod
    def _same(found: Sequence[dict[str, str]]) -> dict[str, str]:
        """The hashes by name that all scorers say."""
        held = {name: sorted({hashes.get(name, "none") for hashes in found}) for name in sorted(set().union(*found))}
        different = {name: hashes for name, hashes in held.items() if len(hashes) > 1}
        if different:
            raise ActorFailedError(f"scorers hold different value or reward models, by name: {different}")
        return found[0]
