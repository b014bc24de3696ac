"""The rollout actors behind the driver's Protocol: answers as they finish, weights to all engines, and none lost for long."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray

from actors.cluster.calls import actor_errors, get, mean_busy_seconds, stop_actors
from actors.cluster.hosting import end_actor
from actors.cluster.metrics import count
from actors.cluster.session import EMBEDDED_FOLDER, cluster_has_gpus, engine_environment, nodes_for, start_actor
from actors.rollout.actor import RolloutActor
from actors.rollout.leftovers import clear_on
from dvpo_ray.config.environments import EnvironmentSettings
from dvpo_ray.config.sections import ClusterSection, GenerationSection, ModelSection
from dvpo_ray.errors import (
    RECOVERABLE_ERRORS,
    ActorDiedError,
    ActorFailedError,
    ActorTimeoutError,
    DamagedWeightsError,
    LearnerLostError,
    PermanentFailureError,
    RowDeadlineError,
    WeightSyncError,
)
from dvpo_ray.io.disk import write_text
from dvpo_ray.loop.restarts import Sentences
from dvpo_ray.runs.prometheus import RESTARTS
from dvpo_ray.runs.stopping import AT_ONCE_S, current
from dvpo_ray.stages import Handle, Weights
from dvpo_ray.types import BucketTargets, EngineLeftovers, RolloutRequest, RowId, ServedWeights, Trajectory

SENDINGS = 3
RETRY_S = 1.0
LOOK_S = 0.5
CLEARED_S = 30.0


@dataclass
class Engine:
    """One rollout actor; ``traces`` are what its processes leave behind should they be killed."""

    name: str
    actor: Any
    starting: Any
    node: str = ""
    traces: EngineLeftovers = field(default_factory=EngineLeftovers)
    served: ServedWeights | None = None


class RolloutPool:
    """Rollout actors; requests are dealt out in turn.

    The rows of an actor that dies go to the others, by id and seed, and a new actor takes its place: it takes part once it holds
    the weights that are served. ``source`` gives these weights; without one an actor's death ends the run.
    """

    def __init__(
        self,
        model_folder: str,
        model: ModelSection,
        rollout: GenerationSection,
        cluster: ClusterSection,
        seed: int,
        traces: Path | None = None,
    ) -> None:
        """``traces`` is a file that says what the engines leave behind if they are killed with this process; those of an
        earlier process that it names are removed."""
        self._arguments = (model_folder, model, rollout, seed)
        self._cluster = cluster
        self._row_timeout = rollout.row_timeout_s
        self._timeout = rollout.row_timeout_s + cluster.call_timeout_s
        # When any engine last gave an answer.
        self._answered = 0.0
        shards = rollout.engine.tensor_parallel
        self._gpus = shards if shards > 1 else rollout.gpu_share or rollout.engine.gpu_memory_utilization
        self._budget = rollout.max_restarts
        self._workers = rollout.engine.tensor_parallel
        self._attempts = rollout.max_row_attempts
        self._missed: dict[RowId, int] = {}
        # What engines that failed since the last version had said themselves.
        self._sentences = Sentences()
        self._starts = 0
        self._traces = traces
        before = read_traces(traces)
        self._engines = [self._start(i, before if i == 0 else None) for i in range(rollout.actors)]
        self._until_stopped = ExitStack()
        self._until_stopped.enter_context(current().at_once(self._end_at_once))
        # Held to change who is in the pool, and to transfer weights: the learner gives one bucket at a time.
        self._members = threading.Condition()
        self._joining: list[Engine] = []
        # Dead ones that nobody came for.
        self._gone: list[Engine] = []
        self._transfer = threading.Lock()
        self._reviving: dict[str, threading.Thread] = {}
        self._failure: BaseException | None = None
        self._learner_lost: LearnerLostError | None = None
        self._cancelled = threading.Event()
        self._stopping = threading.Event()
        self.source: Callable[[], Weights] | None = None
        self.checksums: dict[str, str] = {}

    def settle_on_gpus(self) -> None:
        """Where engines leave room for others on their GPUs, wait until they are up before anybody else starts there.

        vLLM measures the memory that is free while it starts, and gives up when others give some back meanwhile.
        """
        if cluster_has_gpus() and self._gpus < 1:
            self.wait_ready()

    def wait_ready(self) -> str:
        """Wait for all engines; returns the weights' checksum, which all must share."""
        checksums = [self._await_first_start(i) for i in range(len(self._engines))]
        self._note_traces()
        return self._agree(checksums, "the starting weights")

    @property
    def count(self) -> int:
        """How many engines serve, once there is one; none once all is cancelled.

        Raises:
            ActorFailedError: none comes back.
        """
        return len(self._present())

    def nodes(self) -> set[str]:
        """Ids of the Ray nodes of the engines that serve, or will as soon as they have the weights."""
        with self._members:
            return {engine.node for engine in [*self._engines, *self._joining]}

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Handle]:
        """One answer handle for each request, as they finish on any engine; ``given_up`` names those that never will."""
        waiting = {request.row: request for request in requests}
        with self._members:
            for row in waiting:
                self._missed.pop(row, None)
        longest = self._timeout + max((self._episode_s(request) for request in requests), default=0.0)
        streams = self._deal(list(requests))
        while streams:
            ready = self._wait(list(streams), longest)
            if self._cancelled.is_set():
                return
            if not ready:
                names = ", ".join(engine.name for engine, _ in streams.values())
                raise ActorFailedError(f"{names}: no answer within {longest:g} s")
            stream = ready[0]
            engine, rows = streams[stream]
            try:
                with actor_errors(engine.name, "generating"):
                    handle = next(stream, None)
                if handle is not None:
                    # A failed generator hands out its exception as the last item.
                    answer: Trajectory = get(handle, self._cluster.call_timeout_s, engine.name, "generating")
            except (ActorDiedError, RowDeadlineError) as error:
                del streams[stream]
                self._replace(engine, error)
                if isinstance(error, RowDeadlineError) and self._is_poison(error):
                    del waiting[error.row]
                streams |= self._deal([waiting[row] for row in rows if row in waiting])
                continue
            if handle is None:
                del streams[stream]
                continue
            del waiting[answer.row]
            self._answered = time.monotonic()
            yield handle

    def _episode_s(self, request: RolloutRequest) -> float:
        """How much longer than one turn of the engine a row may take, in seconds."""
        settings: EnvironmentSettings | None = request.environment
        return 0.0 if settings is None else settings.longest_s(self._row_timeout)

    def _wait(self, streams: list[Any], longest: float) -> list[Any]:
        """The first of these streams that has something; none once all is cancelled, or nobody was given an answer for
        ``longest`` seconds: rows of other steps may be before these."""
        began = time.monotonic()
        while (left := max(began, self._answered) + longest - time.monotonic()) > 0:
            ready, _ = ray.wait(streams, num_returns=1, timeout=left, fetch_local=False)
            if ready or self._cancelled.is_set():
                return list(ready)
        return []

    def given_up(self, requests: Sequence[RolloutRequest]) -> list[RowId]:
        """Which of these rows were given up: they missed their deadline too often, on engines that answered others."""
        return [request.row for request in requests if self._missed.get(request.row, 0) >= self._attempts]

    def _is_poison(self, error: RowDeadlineError) -> bool:
        """Count a missed deadline against its row; says whether it was the last that is allowed."""
        with self._members:
            self._missed[error.row] = self._missed.get(error.row, 0) + 1
            return self._missed[error.row] >= self._attempts

    def cancel(self) -> None:
        """Let every ``generate`` end now, with the answers it has given; they may be asked for again after the next ``sync``."""
        with self._members:
            self._cancelled.set()
            self._members.notify_all()
            calls = [engine.actor.cancel.remote() for engine in self._engines]
        # An engine that is dead or hangs is found out by those who wait for it.
        ray.wait(calls, num_returns=len(calls), timeout=self._cluster.call_timeout_s)

    def sync(self, weights: Weights) -> ServedWeights:
        """Load a version into every engine, a bucket at a time; all must report the same checksum. Returns the slowest's."""
        self._cancelled.clear()
        with self._members:
            self._learner_lost = None
            self._sentences.forget()
        while True:
            engines = self._present()
            with self._transfer:
                if engines != self._engines:
                    continue  # one came back or died meanwhile
                died = self._load(weights, engines)
            break
        for engine, error in died:
            self._replace(engine, error)
        served = [engine.served for engine in self._present() if engine.served is not None]
        return max(served, key=lambda one: one.seconds)

    def doubts(self) -> list[str]:
        """What speaks against the engines' settings on their nodes."""
        calls = [engine.actor.doubts.remote() for engine in self._present()]
        found = get(calls, self._cluster.call_timeout_s, "a rollout actor", "looking at its node")
        return sorted({text for texts in found for text in texts})

    def busy_seconds(self) -> float:
        """Mean time in which an engine had answers under way, in seconds."""
        return mean_busy_seconds([engine.actor for engine in self._present()], self._cluster, "a rollout actor")

    def _end_at_once(self) -> None:
        """Remove what the engines leave on the machines of a cluster; of an embedded Ray no process lives on, and it does so."""
        if EMBEDDED_FOLDER in os.environ:
            return
        traces = [(engine.node, engine.traces) for engine in self._engines]
        for engine in self._engines:
            end_actor(engine.actor)
        ray.wait([clear_on(*one, patience=0.0) for one in traces], num_returns=len(traces), timeout=AT_ONCE_S / 2)

    def stop(self) -> None:
        """Shut the engines down, then the actors."""
        with self._members:
            self._failure = self._failure or ActorFailedError("the rollout actors were stopped")
            self._members.notify_all()
        self._stopping.set()
        self._until_stopped.close()
        for thread in self._reviving.values():
            thread.join(timeout=self._cluster.start_timeout_s)
        stopped = stop_actors([engine.actor for engine in self._engines])
        dead = [*self._gone, *(engine for engine, ended in zip(self._engines, stopped, strict=True) if not ended)]
        cleared = [clear_on(engine.node, engine.traces) for engine in dead]
        if cleared:
            ray.wait(cleared, num_returns=len(cleared), timeout=CLEARED_S)
        if self._traces is not None:
            self._traces.unlink(missing_ok=True)

    def _start(self, index: int, traces: EngineLeftovers | None = None) -> Engine:
        model_folder, model, rollout, seed = self._arguments
        self._starts += 1
        # The name of a dead actor is not free at once.
        name = f"rollout-{index}" + (f"-start-{self._starts}" if self._starts > rollout.actors else "")
        options = {"max_concurrency": 1000} | nodes_for("rollout", self._cluster)
        kind = start_actor(
            RolloutActor, name, engine_environment(rollout.cpu_threads, rollout.engine.enforce_eager), self._gpus, **options
        )
        actor = kind.remote(model_folder, rollout, seed + index, model.trust_remote_code, model.chat_template_kwargs)
        traces = traces or EngineLeftovers()
        return Engine(name, actor, actor.start.remote(traces), traces=traces)

    def _await_start(self, engine: Engine) -> str:
        """Wait until an engine is up; returns its checksum."""
        deadline = time.monotonic() + self._cluster.start_timeout_s
        while not ray.wait([engine.starting], timeout=LOOK_S)[0] and time.monotonic() < deadline:
            call = engine.actor.traces.remote()
            traces = get(call, self._cluster.start_timeout_s, engine.name, "starting its engine")
            # What the one before left may not have been removed yet, and what dies is no longer seen.
            known, engine.traces = engine.traces, engine.traces | traces
            if engine.traces != known:
                self._note_traces(engine)
        left = max(LOOK_S, deadline - time.monotonic())
        checksum, engine.traces = get(engine.starting, left, engine.name, "starting its engine")
        engine.node = get(engine.actor.node.remote(), self._cluster.call_timeout_s, engine.name, "telling its node")
        return str(checksum)

    def _await_first_start(self, index: int) -> str:
        """Wait until an engine is up on the model's own weights; one that dies meanwhile is started again."""
        while True:
            engine = self._engines[index]
            try:
                return self._await_start(engine)
            except ActorDiedError as error:
                self._charge(engine.name, error)
                end_actor(engine.actor)
                self._engines[index] = self._start(index, engine.traces)

    def _note_traces(self, *starting: Engine) -> None:
        """Write down what all engines would leave, whole or not at all."""
        if self._traces is None:
            return
        with self._members:
            engines = {engine.name: asdict(engine.traces) for engine in [*self._engines, *starting]}
            write_text(self._traces, json.dumps(list(engines.values())) + "\n")

    def _present(self) -> list[Engine]:
        """The engines that serve, waiting for one when there is none; none once all is cancelled.

        Raises:
            LearnerLostError: none can come back, because no learner gives it weights.
        """
        with self._members:
            self._members.wait_for(
                lambda: self._engines or self._failure or self._learner_lost or self._cancelled.is_set(),
                timeout=self._cluster.start_timeout_s,
            )
            if self._cancelled.is_set():
                return []
            if self._failure is not None:
                raise self._failure
            if not self._engines and self._learner_lost is not None:
                raise self._learner_lost
            if not self._engines:
                raise ActorFailedError(f"no rollout actor came back within {self._cluster.start_timeout_s} s")
            return list(self._engines)

    def _deal(self, requests: Sequence[RolloutRequest]) -> dict[Any, tuple[Engine, list[RowId]]]:
        """Give rows to the engines in turn; returns who has which rows, by answer stream."""
        streams = {}
        with self._members:
            engines = self._present()
            for i, engine in enumerate(engines):
                share = list(requests[i :: len(engines)])
                if share:
                    stream = engine.actor.generate.options(num_returns="streaming").remote(share)
                    streams[stream] = (engine, [request.row for request in share])
        return streams

    def _replace(self, engine: Engine, error: ActorFailedError) -> None:
        """Take an actor that died or hangs out and start another, once, however many notice."""
        with self._members:
            if engine not in self._engines:
                return
            if self._failure is not None:
                raise self._failure
            if self.source is None:
                raise error
            self._charge(engine.name, error)
            self._engines.remove(engine)
            thread = threading.Thread(target=self._revive, args=(engine,), name=f"revive {engine.name}", daemon=True)
            self._reviving[engine.name] = thread
            thread.start()

    def _charge(self, name: str, error: ActorFailedError) -> None:
        """Count a death; raises its error when it is one too many, or when engines fail with the same words again and nothing was
        trained between. Rows that miss deadlines have a budget of their own, and a machine that is taken away is no fault."""
        self._budget -= not isinstance(error, RowDeadlineError) and not error.preempted
        if self._budget < 0:
            raise error
        self._sentences.hear(error, name, [engine.name for engine in self._engines])
        extra = {"actor": name} | ({"row": str(error.row)} if isinstance(error, RowDeadlineError) else {})
        logging.getLogger(__name__).warning("%s; its rows go to others, and it is started again", error, extra=extra)
        count(RESTARTS, stage="rollout")

    def _revive(self, dead: Engine) -> None:
        """Start a new actor in a dead one's place and bring it to the learner's weights before it takes part."""
        traces: EngineLeftovers | None = dead.traces
        try:
            end_actor(dead.actor)
            while traces is not None:
                dead.traces |= traces
                traces = self._started_anew(int(dead.name.split("-")[1]), traces)
        except BaseException as error:
            with self._members:
                self._gone.append(dead)
                self._failure = self._failure or error
                self._members.notify_all()

    def _started_anew(self, index: int, traces: EngineLeftovers) -> EngineLeftovers | None:
        """Start an actor that takes part; returns what it leaves behind when it died before it could."""
        engine = self._start(index, traces)
        try:
            self._await_start(engine)
            self._join(engine)
        except BaseException as error:
            stop_actors([engine.actor])
            with self._members:
                self._joining = [other for other in self._joining if other is not engine]
                if self._stopping.is_set() or not isinstance(error, ActorFailedError):
                    raise
                if isinstance(error, (*RECOVERABLE_ERRORS, PermanentFailureError)):
                    raise
                self._charge(engine.name, error)
            return engine.traces
        return None

    def _join(self, engine: Engine) -> None:
        """Bring a new engine to the learner's weights, and let it take part; waits for a learner that is being started again."""
        assert self.source is not None
        deadline = time.monotonic() + self._cluster.start_timeout_s
        with self._members:
            self._joining.append(engine)
        while True:
            try:
                with self._transfer:
                    for _, error in self._load(self.source(), [engine]):
                        raise error
                    with self._members:
                        if self._failure is not None:
                            raise self._failure
                        self._joining.remove(engine)
                        self._engines.append(engine)
                        self._note_traces()
                        self._members.notify_all()
                return
            except (*RECOVERABLE_ERRORS, WeightSyncError) as error:
                if isinstance(error, RECOVERABLE_ERRORS):
                    # The driver must hear of it, and may take long to mend it.
                    deadline = time.monotonic() + self._cluster.start_timeout_s
                    with self._members:
                        self._learner_lost = LearnerLostError(str(error), error.preempted, error.sentence)
                        self._members.notify_all()
                if self._stopping.wait(RETRY_S) or time.monotonic() > deadline:
                    raise

    def _load(self, weights: Weights, engines: Sequence[Engine]) -> list[tuple[Engine, ActorFailedError]]:
        """Load all buckets into some engines, which must end up with the same; returns those that died meanwhile."""
        alive, died = list(engines), []
        for index in range(weights.count):
            served, lost = self._load_bucket(weights, index, alive)
            died += lost
            alive = [engine for engine in alive if engine.name in served]
            for engine in alive:
                engine.served = served[engine.name]
        found = [engine.served for engine in alive if engine.served is not None]
        known = {(one.version, one.payload) for one in found}
        if len(known) > 1:
            raise WeightSyncError(f"rollout actors took different payloads for weights {weights.version}: {sorted(known)}")
        if found:
            self._agree([one.checksum for one in found], f"version {weights.version}", found[0].payload)
        return died

    def _load_bucket(
        self, weights: Weights, index: int, engines: Sequence[Engine]
    ) -> tuple[dict[str, ServedWeights | None], list[tuple[Engine, ActorFailedError]]]:
        """Have engines load a bucket; one that found it damaged is sent it again. Returns what they say, and those that died."""
        waiting = list(engines)
        died: list[tuple[Engine, ActorFailedError]] = []
        served: dict[str, ServedWeights | None] = {}
        for attempt in range(SENDINGS):
            bucket = weights.bucket(index, BucketTargets(tuple(engine.name for engine in waiting), self._workers, attempt))
            calls = [(engine, engine.actor.load_bucket.remote(bucket, place)) for place, engine in enumerate(waiting)]
            waiting = []
            for engine, call in calls:
                doing = f"loading bucket {index} of weights {weights.version}"
                try:
                    served[engine.name] = get(call, self._cluster.call_timeout_s, engine.name, doing)
                except (ActorDiedError, ActorTimeoutError) as error:
                    died.append((engine, error))
                except DamagedWeightsError as error:
                    waiting.append(engine)
                    if attempt + 1 == SENDINGS:
                        self._give_up(index, engines)
                        raise
                    extra = {"actor": engine.name, "step": weights.version}
                    logging.getLogger(__name__).warning("%s: %s; it is sent again", engine.name, error, extra=extra)
            if not waiting:
                break
        return served, died

    def _give_up(self, index: int, engines: Sequence[Engine]) -> None:
        """Engines that had begun an update stay fenced; those that had not go on with what they serve."""
        if index > 0:
            calls = [engine.actor.abandon_update.remote() for engine in engines]
            get(calls, self._cluster.call_timeout_s, "a rollout actor", "abandoning an update")

    def _agree(self, checksums: Sequence[str], what: str, payload: str = "") -> str:
        known = self.checksums.setdefault(payload, checksums[0]) if payload else checksums[0]
        for i, checksum in enumerate(checksums):
            if checksum != known:
                raise WeightSyncError(
                    f"rollout-{i} serves other weights than expected for {what}: {checksum[:16]}..., not {known[:16]}..."
                )
        return known


def read_traces(path: Path | None) -> EngineLeftovers:
    """What the engines of an earlier process left behind; nothing when they were shut down."""
    if path is None or not path.is_file():
        return EngineLeftovers()
    try:
        engines = json.loads(path.read_text())
    except ValueError:
        logging.getLogger(__name__).warning("%s is cut short: engines of an earlier driver may have left shared memory", path)
        return EngineLeftovers()
    processes = tuple((int(pid), float(started)) for engine in engines for pid, started in engine["processes"])
    files, sockets = (tuple(name for engine in engines for name in engine.get(kind, ())) for kind in ("files", "sockets"))
    return EngineLeftovers(processes, files, sockets)
