"""Metric trackers: TensorBoard by default, Weights & Biases and MLflow when their extras are installed and named, and any other
that a job brings along."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from dvpo_ray.config.sections import TrackingSection
from dvpo_ray.errors import ConfigError


class Tracker(Protocol):
    """Takes every step's metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step, or one evaluation."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class Trackers:
    """Sends every step's metrics to all trackers that are on."""

    def __init__(
        self, section: TrackingSection, folder: Path, name: str, config: dict[str, Any], others: Sequence[Tracker] = ()
    ) -> None:
        """``others`` are trackers besides those that the section names."""
        self._log: list[Callable[[int, dict[str, float]], None]] = [other.log for other in others]
        self._close: list[Callable[[], None]] = [other.close for other in others]
        if section.tensorboard:
            self._add_tensorboard(folder / "tensorboard")
        if section.wandb_project:
            self._add_wandb(section, folder, name, config)
        if section.mlflow_uri:
            self._add_mlflow(section.mlflow_uri, name, config)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one step."""
        for log in self._log:
            log(step, metrics)

    def close(self) -> None:
        """Flush and close all trackers."""
        for close in self._close:
            close()

    def _add_tensorboard(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder))

        def log(step: int, metrics: dict[str, float]) -> None:
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)

        self._log.append(log)
        self._close.append(writer.close)

    def _add_wandb(self, section: TrackingSection, folder: Path, name: str, config: dict[str, Any]) -> None:
        wandb = require("wandb", "wandb")
        if section.wandb_api_key is not None:
            wandb.login(key=section.wandb_api_key.get_secret_value())
        run = wandb.init(project=section.wandb_project, name=name, config=config, dir=str(folder))
        self._log.append(lambda step, metrics: run.log(metrics, step=step))
        self._close.append(run.finish)

    def _add_mlflow(self, uri: str, name: str, config: dict[str, Any]) -> None:
        mlflow = require("mlflow", "mlflow")
        mlflow.set_tracking_uri(uri)
        mlflow.start_run(run_name=name)
        mlflow.log_dict(config, "config.json")
        self._log.append(lambda step, metrics: mlflow.log_metrics(metrics, step=step))
        self._close.append(mlflow.end_run)


def require(module: str, extra: str) -> Any:
    """Import an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"tracking needs the package '{module}': install the extra '{extra}'") from error
