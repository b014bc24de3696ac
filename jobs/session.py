"""What every job has in common: signals, the lock on its run, what it goes on from, the run itself, its actors, and its end."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from actors.cluster.metrics import RayTracker
from actors.cluster.nodes import draining, this_node
from actors.cluster.session import keep_logs, ray_session
from dvpo_ray.checkpoints.replicator import CheckpointReplicator
from dvpo_ray.checkpoints.store import Checkpoint, CheckpointStore
from dvpo_ray.config import Recipe
from dvpo_ray.config.sections import CheckpointSection, ClusterSection
from dvpo_ray.data import fingerprint
from dvpo_ray.loop.checkpointer import Checkpointer
from dvpo_ray.models.value_model import ValueModelSeal
from dvpo_ray.runs.folder import locked, run_folder
from dvpo_ray.runs.memory import MemoryMonitor
from dvpo_ray.runs.run import NUMBER_TYPES, RESULT, Event, Listener, Run, failures
from dvpo_ray.runs.status import status_kept
from dvpo_ray.runs.stopping import Stop, heeding
from dvpo_ray.stages import Checkpointing
from jobs.models import BaseModel, base_model, settle_devices
from jobs.resume import (
    check_same_data,
    copier_of,
    copies,
    copying,
    find_checkpoint,
    kept_models,
    prepare_copies,
    resumes_in_place,
    store_of,
)

R = TypeVar("R", bound=Recipe)
# Verifies the models that a recipe names beside its own; returns the recipe with their places, and the seal of its value model.
Verify = Callable[[R, BaseModel], tuple[R, ValueModelSeal | None]]
# Refuses a settled recipe whose engines could not serve the model in a folder.
CheckEngines = Callable[[R, Path, Listener], object]


class Drains(Protocol):
    """Actors that know the machines they are on."""

    def draining(self) -> bool:
        """Whether one of these is about to be taken away."""
        ...


class Stops(Protocol):
    """Actors of one kind."""

    def stop(self) -> None:
        """End them."""
        ...


@dataclass
class Session(Generic[R]):
    """One training under way: its recipe with all decided, its verified model, its run, and what it goes on from.

    ``seal`` is that of the value model that the recipe reads, if it reads one; ``data_sha256`` the fingerprint of the rows.
    """

    recipe: R
    section: CheckpointSection
    base: BaseModel
    seal: ValueModelSeal | None
    run: Run
    store: CheckpointStore
    copier: CheckpointReplicator | None
    checkpoint: Checkpoint | None
    data_sha256: str = ""
    memory: MemoryMonitor = field(default_factory=lambda: MemoryMonitor(os.getpid()))

    def check_data(self, rows: Sequence[Any], steps: int) -> None:
        """Train on these rows for so many steps; what the run recorded after its checkpoint is taken back.

        Raises:
            DataError: they are not those with which the checkpoint was made.
        """
        self.data_sha256 = fingerprint(rows)
        self.run.total_steps = steps
        check_same_data(self.checkpoint, self.data_sha256)
        if self.checkpoint is not None and self.run.in_place:
            self.run.rewind(self.checkpoint.step)
            self.store.abandon_after(self.checkpoint.step)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Watch the memory of all processes, and wait at the end for the last copies of checkpoints."""
        with self.memory, copying(self.copier, self.run):
            yield

    def checkpointer(self, learner: Checkpointing) -> Checkpointer:
        """Who checkpoints a learner as the recipe says."""
        run = self.run
        run.pace.checkpoint_bytes = self.base.checkpoint_bytes
        return Checkpointer(self.store, learner, run, self.section.every, run.total_steps, self.copier)

    @contextmanager
    def saving(self, what: str) -> Iterator[None]:
        """What the run is for is being saved: that is not given up."""
        run = self.run
        run.phase(f"saving the {what}")
        with run.stop.finishing(lambda: run.pace.plan_of_rest(f"saving the {what}", run.pace.checkpoint_seconds)):
            yield

    def result(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``result.json``: what was found, and what is known of every run."""
        result = {
            **found,
            "seed": self.recipe.run.seed,
            "seconds_total": self.run.seconds,
            "peak_memory_gb": self.memory.peak_gb,
            "peak_memory_by_process_gb": self.memory.peak_by_process_gb,
            NUMBER_TYPES: self.run.number_types,
            **copies(self.copier),
        }
        self.run.write_json(RESULT, result)
        return result


def nothing_else(recipe: R, base: BaseModel) -> tuple[R, None]:
    """For recipes that name no model beside their own."""
    return recipe, None


@contextmanager
def session(
    recipe: R,
    section: CheckpointSection,
    listener: Listener,
    verify: Verify[R] = nothing_else,
    check_engines: CheckEngines[R] | None = None,
) -> Iterator[Session[R]]:
    """Begin a training or go on with it, as ``run.resume`` asks, for the length of the block.

    Within the block the run is locked, signals are heeded, and ``status.json`` says how the training stands.

    Raises:
        UserInputError: recipe, models, checkpoint or the cluster's nodes do not allow it; nothing of the run was touched.
        RunError: another process has the run, or the cluster cannot be reached.
        RunStoppedError: the run was asked to stop.
    """
    with job(listener) as stop, locked(run_folder(recipe)):
        store = store_of(run_folder(recipe), section)
        copier = copier_of(store, section)
        checkpoint = find_checkpoint(recipe, store, copier)
        base = base_model(recipe.model, listener, kept_models(checkpoint))
        recipe, seal = verify(recipe, base)
        recipe, chosen = settle_devices(recipe, base, checkpoint)
        if check_engines is not None:
            check_engines(recipe, base.folder, listener)
        prepare_copies(recipe, checkpoint, copier)
        run = Run(recipe, 0, listener, resumes_in_place(recipe, checkpoint), [RayTracker(recipe.run.name)])
        with status_kept(run.folder, stop, run.pace), closing(run):
            run.phase(chosen.text)
            yield Session(recipe, section, base, seal, run, store, copier, checkpoint)


@contextmanager
def job(listener: Listener) -> Iterator[Stop]:
    """Heed signals for the length of a job, and tell its listener what they lead to.

    Raises:
        RunStoppedError: a signal ended what was being done.
    """
    with heeding(lambda text: listener(Event("stopping", text))) as stop:
        yield stop


@contextmanager
def running_actors(cluster: ClusterSection, logs: Path, stop: Stop) -> Iterator[list[Stops]]:
    """A Ray, and a list for what is started on it, all of which is taken down again; what fails leaves its actors' logs in
    the folder ``logs``.

    Raises:
        RunError: the cluster cannot be reached.
    """
    started: list[Stops] = []
    with ray_session(cluster), failures(logs, keep_logs):
        try:
            yield started
        finally:
            with stop.ending():
                for one in started:
                    one.stop()


def leaving(learner: Drains) -> set[str]:
    """Which of ``learner`` and ``driver`` (this process) are on nodes that are being drained."""
    found = {"learner": learner.draining(), "driver": draining([this_node()])}
    return {name for name, soon in found.items() if soon}
