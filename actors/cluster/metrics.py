"""Ray's application metrics: what ``dvpo_ray.runs.prometheus`` names, sent by whichever process knows it; none without Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from dvpo_ray.runs.prometheus import BUSY, Exported, catalogue, run_metrics

DRIVER = "driver"
REFRESH_S = 5.0
Labels = tuple[tuple[str, str], ...]


class Gauges:
    """What the gauges of this process show.

    Ray forgets a gauge that has not been set for two of its report intervals (20 s): one that is set once a step would come and
    go, and a run that stalls would vanish. A thread says them again until they are forgotten or the process ends.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def set(self, metric: Exported, value: float, labels: dict[str, str]) -> None:
        """Show a value from now on."""
        with self._lock:
            self._values[metric.name, tuple(sorted(labels.items()))] = value
            if self._thread is None:
                self._thread = threading.Thread(target=self._refresh, name="gauges", daemon=True)
                self._thread.start()
        _sender(metric.name).set(value, labels)

    def forget(self, label: str, value: str) -> None:
        """Show nothing more under a label."""
        with self._lock:
            self._values = {key: shown for key, shown in self._values.items() if (label, value) not in key[1]}

    def _refresh(self) -> None:
        pause = threading.Event()
        while not pause.wait(REFRESH_S):
            with self._lock:
                shown = list(self._values.items())
            for (name, labels), value in shown:
                _sender(name).set(value, dict(labels))


GAUGES = Gauges()


class RayTracker:
    """Sends what is known of each step."""

    def __init__(self, run: str) -> None:
        self._run = run

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Show one step, or one evaluation."""
        for metric in run_metrics().values():
            for value, key in metric.keys.items():
                if key in metrics:
                    GAUGES.set(metric, metrics[key], {"run": self._run} | ({metric.label: value} if metric.label else {}))

    def close(self) -> None:
        """The run has ended: it is shown no more, though this process may live on."""
        GAUGES.forget("run", self._run)


def show(metric: Exported, value: float) -> None:
    """Set a gauge of this process."""
    GAUGES.set(metric, value, {"actor": _actor()})


def count(metric: Exported, amount: float = 1.0, **labels: str) -> None:
    """Add to a counter of this process."""
    if amount > 0:
        _sender(metric.name).inc(amount, {"actor": _actor()} | labels)


def busy_counter(stage: str) -> Callable[[float], None]:
    """Takes the seconds in which a process of a stage had work."""
    return lambda seconds: count(BUSY, seconds, stage=stage)


def started_again() -> bool:
    """Whether Ray started this actor again after its process had died."""
    return _in_actor() and ray.get_runtime_context().was_current_actor_reconstructed


def _in_actor() -> bool:
    return ray.is_initialized() and not ray.get_runtime_context().worker.actor_id.is_nil()


@cache
def _sender(name: str) -> Any:
    metric = catalogue()[name]
    kind = Gauge if metric.kind == "gauge" else Counter
    return kind(metric.name, metric.meaning, metric.labels)


@cache
def _actor() -> str:
    """The name of this actor, as the Ray dashboard shows it; ``driver`` in a process that is none."""
    return ray.get_runtime_context().get_actor_name() if _in_actor() else DRIVER
