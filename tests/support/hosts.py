"""Processes that tests keep: learner ranks, scorers and engines of one test after another live in them.

An actor's start is mostly imports, and an engine's is more. What an actor is told and does is the same in a kept process: it is
made by its own class, loads its model, and answers by its own methods. Only these are shared: a learner's process group, and an
engine, which loads the weights of its model's folder again.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from safetensors.torch import load_file

from actors.cluster.calls import get
from actors.cluster.picklable_errors import with_picklable_errors
from actors.learner.critic import CriticRank
from actors.learner.dpo import DpoLearnerRank
from actors.learner.policy import PolicyLearnerRank
from actors.learner.rank import Rank
from actors.learner.value import ValueLearnerRank
from actors.rollout.actor import RolloutActor, stop_ids
from actors.scorer.actor import ScorerActor
from actors.weights.buckets import SharedBuffer, layout, write_bucket
from dvpo_ray.models.packaged import folder_of
from dvpo_ray.types import EngineLeftovers, TensorSpec, WeightBucket

RANKS: tuple[type, ...] = (PolicyLearnerRank, ValueLearnerRank, DpoLearnerRank, CriticRank)
START_S = 120.0
# Ray calls actors of one name one; processes that are kept are no hindrance to others.
NAMESPACE = "kept"


class Host:
    """A process in which one actor after another lives; it has the public methods of all of them."""

    def become(self, kind: type, *given: Any) -> None:
        """Be a new actor of this kind."""
        self._actor: Any = with_picklable_errors(kind)(*given)
        if isinstance(self._actor, Rank):
            # DeepSpeed joins one process group in its life.
            self._actor.leave = lambda: None

    def rest(self) -> None:
        """Forget the actor, and its model."""
        del self._actor
        gc.collect()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._actor, name)


def _passed_on(name: str) -> Callable[..., Any]:
    def call(self: Any, *given: Any) -> Any:
        return getattr(self._actor, name)(*given)

    return call


for _kind in (*RANKS, ScorerActor):
    for _name, _ in inspect.getmembers(_kind, inspect.isfunction):
        if not _name.startswith("_"):
            setattr(Host, _name, _passed_on(_name))


class EngineHost(RolloutActor):
    """A rollout actor whose engine stays when it is stopped, and begins again with the weights of its model's folder."""

    async def become(self, kind: type, *given: Any) -> None:
        """Be a new rollout actor with the same engine."""
        engine, log, traces = self._engine, self._log, self._traces
        self._buffer.close()
        self.__init__(*given)  # type: ignore[misc]
        self._engine, self._log, self._traces = engine, log, traces

    async def start(self, before: EngineLeftovers | None = None) -> tuple[str, EngineLeftovers]:
        """As the actor's, the first time; afterwards load the folder's weights as version 0."""
        if self._engine is None:
            return await super().start(before)
        self._model = folder_of(self._place)
        self._stop_ids = stop_ids(self._model, self._trust_remote_code, self._template_arguments)
        tensors = load_file(self._model / "model.safetensors")
        specs = tuple(TensorSpec.of(name, tensor) for name, tensor in tensors.items())
        size, memory = layout(specs)[1], SharedBuffer()
        digest = write_bucket(memory.bytes(size), specs, tensors)
        served = await self.load_bucket(WeightBucket(0, 0, 1, specs, size, digest, memory.path))
        memory.close()
        assert served is not None
        return served.checksum, self._known_traces()

    async def stop(self) -> None:
        """Give up what is under way."""
        await self.cancel()

    async def rest(self) -> None:
        """Nothing to forget."""

    async def end(self) -> None:
        """Shut the engine down."""
        await super().stop()


@dataclass(frozen=True)
class Kept:
    """A process; actors with equal keys may live in it."""

    key: tuple[object, ...]
    handle: Any


class Hosts:
    """All processes that are kept (``actors.cluster.hosting.ActorHosts``)."""

    def __init__(self) -> None:
        self._idle: list[Kept] = []
        self._used: list[Kept] = []
        self._started = 0

    def host(self, kind: type, name: str, environment: dict[str, str], options: dict[str, Any]) -> Any | None:
        """An actor class ready for ``.remote(...)``."""
        if kind is RolloutActor or kind is ScorerActor or kind in RANKS:
            return _Place(self, kind, name, environment, options)
        return None

    def release(self, actor: Any) -> bool:
        """Keep this process for another."""
        for kept in self._used:
            if kept.handle is actor:
                self._used.remove(kept)
                kept.handle.rest.remote()
                self._idle.append(kept)
                return True
        return False

    def take(self, kind: type, name: str, environment: dict[str, str], options: dict[str, Any], given: tuple[Any, ...]) -> Any:
        """A process in which an actor has begun to live."""
        host_class, key = (EngineHost, _engine_key(name, given)) if kind is RolloutActor else (Host, _key(kind, name, given))
        key += (tuple(sorted(environment.items())),)
        for kept in [kept for kept in self._idle if kept.key == key]:
            self._idle.remove(kept)
            try:
                get(kept.handle.become.remote(kind, *given), START_S, name, "beginning")
            except RayActorError:
                continue
            self._used.append(kept)
            return kept.handle
        if host_class is EngineHost:
            self._end_engines()
        self._started += 1
        # An engine's name is in what it says.
        alias = name if kind in (RolloutActor, ScorerActor) else f"host-{self._started}"
        named = options | {"name": alias, "namespace": NAMESPACE, "runtime_env": {"env_vars": environment}, "num_cpus": 0}
        handle = (
            ray.remote(with_picklable_errors(host_class)).options(**named).remote(*(given if host_class is EngineHost else ()))
        )
        if host_class is Host:
            handle.become.remote(kind, *given)
        self._used.append(Kept(key, handle))
        return handle

    def _end_engines(self) -> None:
        """One engine rests at a time."""
        for kept in [kept for kept in self._idle if kept.key[0] is EngineHost]:
            self._idle.remove(kept)
            get(kept.handle.end.remote(), START_S, "an engine", "ending")
            ray.kill(kept.handle)

    def end(self) -> None:
        """End all processes."""
        self._end_engines()
        for kept in [*self._idle, *self._used]:
            ray.kill(kept.handle)
        self._idle, self._used = [], []


@dataclass(frozen=True)
class _Place:
    """What ``start_actor`` gives: an actor class ready for ``.remote(...)``."""

    hosts: Hosts
    kind: type
    name: str
    environment: dict[str, str]
    options: dict[str, Any]

    def remote(self, *given: Any) -> Any:
        """The actor."""
        return self.hosts.take(self.kind, self.name, self.environment, self.options, given)


def _key(kind: type, name: str, given: tuple[Any, ...]) -> tuple[object, ...]:
    """A rank stays the same one of as many; a scorer has its own name."""
    return (Host, name) if kind is ScorerActor else (Host, *given[:2])


def _engine_key(name: str, given: tuple[Any, ...]) -> tuple[object, ...]:
    """An engine's model and settings."""
    model, rollout, _seed, trust, _arguments = given
    return EngineHost, name, model, rollout.engine.model_dump_json(), trust
