"""A run's folder and its record of steps: metrics, spans, and what people and machines are shown meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import FiniteFloat

from dvpo_ray.config import Recipe, dump_resolved
from dvpo_ray.config.loading import CONFIG
from dvpo_ray.errors import RunError, RunStoppedError
from dvpo_ray.io.disk import LineFile, write_text, writing
from dvpo_ray.planning.device_defaults import number_types
from dvpo_ray.runs.declarations import save_declarations
from dvpo_ray.runs.folder import DEAD_LETTERS, METRICS, prepare_folder, rewind, run_folder, seconds_of_work
from dvpo_ray.runs.pace import Pace
from dvpo_ray.runs.stopping import current
from dvpo_ray.runs.timeline import Timeline
from dvpo_ray.runs.trackers import Tracker, Trackers
from dvpo_ray.types import ServedWeights, StepResult

T = TypeVar("T")
RESULT = "result.json"
# What a checkpoint's state and a result call the number type of each role.
NUMBER_TYPES = "number_types"
TIMELINE = "timeline.json"
LOGS = "logs"


class Resumable(Protocol):
    """What a run can go on from: so many trained steps, and what was known then."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        ...

    @property
    def step(self) -> int:
        """Steps trained then."""
        ...

    def part(self, name: str, kind: Any) -> Any:
        """A part of the state, of a type."""
        ...


@dataclass(frozen=True)
class Event:
    """Something worth showing: ``kind`` is ``phase``, ``stage`` (of a step), ``step``, ``evaluation``, ``warning``, ``stopping``,
    or ``alive`` when nothing else was told for long. ``left`` is the time to the end of the job in seconds, as far as is known.
    """

    kind: str
    text: str
    step: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    left: float | None = None


Listener = Callable[[Event], None]
# Keeps logs in a folder if they would be lost, and says where they are.
KeepLogs = Callable[[Path], str]


class Doubting(Protocol):
    """Actors of one kind."""

    def doubts(self) -> list[str]:
        """What speaks against their settings on the nodes they are on."""
        ...


class Run:
    """The folder of one run. Every record is written as it happens, so a run that dies leaves what it knew."""

    def __init__(
        self,
        recipe: Recipe,
        total_steps: int,
        listener: Listener = lambda event: None,
        in_place: bool = False,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        """``in_place`` goes on in the folder of an earlier run; ``trackers`` are told of every step."""
        self.in_place = in_place
        self.folder = run_folder(recipe) if in_place else prepare_folder(recipe)
        write_text(self.folder / CONFIG, dump_resolved(recipe))
        save_declarations(self.folder)
        # Whoever goes on with a run reads its sources again, bad rows as well.
        (self.folder / DEAD_LETTERS).unlink(missing_ok=True)
        self.number_types = number_types(recipe)
        self.pace = Pace(total_steps)
        self.listener = listener
        self.began = time.time()
        self.seconds_before = 0.0
        self.first_began = self.began
        # Asked by something else than a signal: a machine that will be taken away.
        self._leaving = False
        self.stop = current()
        self._kept_before, self.stop.kept = self.stop.kept, lambda: self.pace.kept() or self._kept_before()
        self.timeline = Timeline(self.began)
        self.closed = 0.0
        self.seconds_of_work = 0.0
        self._trackers = Trackers(recipe.tracking, self.folder, recipe.run.name, json.loads(dump_resolved(recipe)), trackers)
        self._metrics = LineFile(self.folder / METRICS)

    @property
    def total_steps(self) -> int:
        """Steps from the start to the end."""
        return self.pace.total

    @total_steps.setter
    def total_steps(self, steps: int) -> None:
        self.pace.total = steps

    @property
    def stopping(self) -> bool:
        """Whether the run is to end after its step, with a checkpoint."""
        return self._leaving or self.stop.asked

    @stopping.setter
    def stopping(self, leaving: bool) -> None:
        self._leaving = leaving

    @property
    def seconds(self) -> float:
        """Time since the run began, that of earlier drivers included."""
        return self.seconds_before + time.time() - self.began

    @property
    def effective_time_share(self) -> float:
        """Share of the time since the run first began, all its drivers included, that went into work that counts."""
        return self.seconds_of_work / (time.time() - self.first_began)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must remember of the run: its time, and the number types that it computes in."""
        return {"seconds": self.seconds, "first_began": self.first_began, NUMBER_TYPES: self.number_types}

    def take_clocks(self, checkpoint: Resumable) -> None:
        """Count on from the time of a checkpoint."""
        self.seconds_before, self.first_began = (checkpoint.part(name, FiniteFloat) for name in ("seconds", "first_began"))

    def resume(self, checkpoint: Resumable) -> None:
        """Be the run of a checkpoint: its clocks, and what was recorded until then."""
        self.take_clocks(checkpoint)
        self.began = time.time()
        self.go_back(checkpoint)

    def go_back(self, checkpoint: Resumable | None) -> None:
        """Take back what was recorded after a checkpoint, or since the start, and say where the run goes on."""
        step = 0 if checkpoint is None else checkpoint.step
        self.pace.go_back(step, checkpoint is not None)
        self.rewind(step)
        self.phase(f"going on after step {step}" + (f", from {checkpoint.folder}" if checkpoint else ""))

    def rewind(self, step: int) -> None:
        """Take back what was recorded after so many trained steps."""
        self._metrics.close()
        rewind(self.folder, step)
        self.seconds_of_work = seconds_of_work(self.folder)
        self._metrics = LineFile(self.folder / METRICS)
        self.restart_clock()

    def phase(self, text: str) -> None:
        """Say what happens now."""
        self.listener(Event("phase", text))

    def doubt(self, pools: Iterable[Doubting]) -> None:
        """Say what actors that have started find wrong with their settings on the nodes they are on."""
        for pool in pools:
            for text in pool.doubts():
                self.listener(Event("warning", text))

    def stage(self, step: int, name: str) -> None:
        """Say what a step (counted from 0) does now; the feed's threads say it too."""
        self.listener(Event("stage", name, step + 1, self.total_steps, left=self.pace.left()))

    def warn(self, step: int, text: str) -> None:
        """Say that a step (counted from 0) gave cause for doubt."""
        self.listener(Event("warning", f"step {step + 1}: {text}", step + 1, self.total_steps))

    def warn_all(self, news: Iterable[tuple[int, str]]) -> None:
        """Say what went wrong beside the steps: (trained steps, what)."""
        for steps, text in news:
            self.warn(steps - 1, text)

    def record(self, step: int, lane: int = 0) -> StepRecord:
        """The record of one step; steps whose spans overlap have different lanes."""
        return StepRecord(self, step, lane)

    def restart_clock(self) -> None:
        """The next step's time counts from now: what was done since the last checkpoint was no part of a step."""
        self.closed = time.time()
        self.pace.begin()

    def log(self, step: int, metrics: dict[str, float], kind: str = "step") -> None:
        """One line of metrics, to the file and every tracker; ``step`` counts from 0, an evaluation's is the steps before it."""
        self.seconds_of_work += metrics.get("eval/seconds", 0.0)
        if kind == "step":
            self.pace.step_done(step + 1, metrics["seconds/step"])
        self._metrics.add(json.dumps({"step": step, "time": round(time.time() - self.began, 3)} | metrics))
        with writing(self.folder):
            self._trackers.log(step, metrics)
        self.listener(Event(kind, "", step + (kind == "step"), self.total_steps, metrics, self.pace.left()))

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file into the folder."""
        return write_json(self.folder / name, content)

    @contextmanager
    def failures(self, keep_logs: KeepLogs) -> Iterator[None]:
        """When a run fails inside the block, keep its logs in the run's folder and say so in the error."""
        with failures(self.folder / LOGS, keep_logs):
            yield

    def close(self) -> None:
        """Write the timeline and close all files."""
        self.stop.kept = self._kept_before
        self._metrics.close()
        with writing(self.folder):
            self._trackers.close()
        self.write_json(TIMELINE, self.timeline.chrome_trace())


@contextmanager
def failures(folder: Path, keep_logs: KeepLogs) -> Iterator[None]:
    """When the block fails, keep what its actors wrote in ``folder``, and say in the error where it is."""
    try:
        yield
    except RunStoppedError:
        raise
    except RunError as error:
        try:
            kept = keep_logs(folder)
        except OSError as problem:
            kept = f"could not be kept in '{folder}': {problem}"
        error.args = (f"{error}\nlogs: {kept}",)
        raise


class StepRecord:
    """Spans and metrics of one step, from its first request to its checkpoint."""

    def __init__(self, run: Run, step: int, lane: int) -> None:
        self._run = run
        self.step = step
        self._lane = lane
        self._began = time.time()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.time()
        self._run.stage(self.step, name)
        yield
        self._add(name, start, time.time())

    def stream(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Pass items on as they come; the span ends with the last one."""
        with self.span(name):
            yield from items

    def close(self, result: StepResult, books: dict[str, int], served: ServedWeights) -> None:
        """Write the step's metrics. Its time is that since the step before it was closed: steps may overlap."""
        now = time.time()
        seconds = {f"seconds/{name}": value for name, value in self._seconds.items()}
        seconds["seconds/step"] = now - max(self._began, self._run.closed)
        self._run.closed = now
        self._run.seconds_of_work += seconds["seconds/step"]
        seconds["time/ended"] = now
        seconds["time/effective_share"] = self._run.effective_time_share
        seconds["seconds/engine_update"] = served.seconds
        seconds["speed/answer_tokens_per_s"] = result.metrics.get("answer/total_tokens", 0.0) / seconds["seconds/step"]
        metrics = result.metrics | seconds | {name: float(value) for name, value in books.items()}
        metrics |= {"weights/version": float(result.version), "sync/bytes": float(served.bytes)}
        self._run.log(self.step, metrics)

    def _add(self, name: str, start: float, end: float) -> None:
        # A step may generate and score more than once.
        self._seconds[name] = self._seconds.get(name, 0.0) + end - start
        track = f"{name} {self._lane}" if self._lane else name
        self._run.timeline.add(name, start, end, track, step=self.step)


def write_json(path: Path, content: Any) -> Path:
    """Write indented JSON."""
    return write_text(path, json.dumps(content, indent=2, default=str) + "\n")
