"""What ``import dvpo_ray`` offers: recipes, runs, and what runs left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dvpo_ray.config import Recipe
from dvpo_ray.config.kinds import KINDS, kind_of
from dvpo_ray.config.loading import CONFIG, build, merge, recipe_tree
from dvpo_ray.errors import UserInputError
from dvpo_ray.io.json_files import read_object, read_records
from dvpo_ray.io.paths import expanded
from dvpo_ray.registry import load_entry_point
from dvpo_ray.runs.folder import EVALUATIONS, METRICS, kept_trajectories
from dvpo_ray.runs.run import RESULT, Event
from dvpo_ray.runs.status import JobStatus, read_status
from dvpo_ray.runs.trajectories import KeptTrajectory, StepSample, read_sample

# The jobs lie above this package and are looked up when they are needed.
JOBS = "jobs.registry:JOBS"


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply overrides in order, and check it; its sections say of which kind it is.

    Args:
        path: a TOML file, or the bare name of a recipe shipped with the project.
        overrides: values by dotted path (``{"run.seed": 1}``), or texts ``dotted.path=value`` as of ``--set``.

    Raises:
        ConfigError: with file, key, value met and remedy.
    """
    by_path, texts = (overrides, []) if isinstance(overrides, Mapping) else ({}, list(overrides))
    tree, origin = recipe_tree(path, texts)
    for key, value in by_path.items():
        merge(tree, _nested(key, str(value) if isinstance(value, Path) else value))
    return build(KINDS[kind_of(tree, origin)], tree, origin)


def _nested(path: str, value: Any) -> dict[str, Any]:
    """A tree with one setting: ``("a.b", 1)`` gives ``{"a": {"b": 1}}``."""
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def run(recipe: Recipe, on_event: Callable[[Event], None] = lambda event: None) -> dict[str, Any]:
    """Do the work of a recipe, as the command line does; returns what ``result.json`` holds.

    ``on_event`` is told of phases, steps, evaluations and warnings as they come.

    Raises:
        DvpoError: as the command line's error; its subclass ``UserInputError`` where the recipe or its data are to be mended.
    """
    work: Callable[..., dict[str, Any]] = load_entry_point(load_entry_point(JOBS)[type(recipe)])
    return work(recipe, on_event)


@dataclass(frozen=True)
class RunRecord:
    """What a run has left in its folder so far. Read when it is asked for, once."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved recipe, defaults included."""
        return read_object(self.folder / CONFIG)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every step and evaluation, in order."""
        return self._lines(METRICS)

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """Every held-out answer, with its values and its score."""
        return self._lines(EVALUATIONS)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """What a run that has ended says of itself; None before that."""
        file = self.folder / RESULT
        return read_object(file) if file.is_file() else None

    @cached_property
    def status(self) -> JobStatus | None:
        """How the job stands, or how it ended; None of a run that was never begun as a job."""
        return read_status(self.folder)

    @cached_property
    def trajectory_steps(self) -> list[int]:
        """The steps (counted from 0, as in ``metrics``) of which trajectories were kept, in order."""
        return list(self._trajectory_files)

    def trajectories(self, step: int | None = None) -> list[KeptTrajectory]:
        """The rows that were kept of those that a step (counted from 0, as in ``metrics``) was trained on, or of all steps; none
        of a step of which none were kept.

        Raises:
            DataError: their file is damaged.
        """
        steps = self.trajectory_steps if step is None else [step]
        return [row for one in steps for row in self.trajectory_sample(one).rows]

    def trajectory_sample(self, step: int) -> StepSample:
        """The same of one step, with the number of all its rows.

        Raises:
            DataError: their file is damaged.
        """
        file = self._trajectory_files.get(step)
        return StepSample(step, [], 0) if file is None else read_sample(file)

    @cached_property
    def _trajectory_files(self) -> dict[int, Path]:
        return next((files for folder in self._folders if (files := kept_trajectories(folder))), {})

    @property
    def _folders(self) -> tuple[Path, Path]:
        """Where records are: of a pipeline in that of its policy training."""
        return self.folder / "policy", self.folder

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The records in a file of the run, or of the policy training of a pipeline."""
        files = (folder / name for folder in self._folders)
        return next((read_records(file) for file in files if file.is_file()), [])


def read_run(folder: str | Path) -> RunRecord:
    """What a run has left in its folder, also while it goes on.

    Raises:
        UserInputError: there is no run.
    """
    path = Path(expanded(str(folder)))
    if not (path / CONFIG).is_file():
        raise UserInputError(f"'{path}' holds no run: no {CONFIG}; give the folder that a run wrote")
    return RunRecord(path)
