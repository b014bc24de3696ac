"""A run's folder: new, replaced or gone on with, and locked against a second driver."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from dvpo_ray.config import Recipe, dump_resolved
from dvpo_ray.config.loading import CONFIG
from dvpo_ray.config.references import fixed_settings
from dvpo_ray.errors import ConfigError, RunError
from dvpo_ray.io.disk import writing
from dvpo_ray.io.json_files import iter_records, read_object, read_records
from dvpo_ray.models.folder import flush_file, sha256_file
from dvpo_ray.runs.stopping import current

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
CHECKPOINTS = "checkpoints"
DUMPS = "dumps"
TRAJECTORIES = "trajectories"
DEAD_LETTERS = "dead_letters.jsonl"
STEP_FILE = re.compile(r"step-(\d{8})\.parquet")
RECORDS = (CONFIG, METRICS, EVALUATIONS)


def run_folder(recipe: Recipe) -> Path:
    """Where a run's files go."""
    return Path(recipe.run.output_dir) / recipe.run.name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run for this process. The lock goes with the process, however it ends.

    Raises:
        RunError: another process holds it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    file = _locked_file(path, folder)
    try:
        file.truncate(0)
        with writing(path):
            file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            file.flush()
        with current().at_once(partial(path.unlink, missing_ok=True)):
            yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _locked_file(path: Path, folder: Path) -> TextIO:
    """The open lock file, locked; one that was removed between opening and locking is no lock."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise RunError(f"run '{folder}' is in use by another driver ({holder}): wait for it or end it") from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


def prepare_folder(recipe: Recipe) -> Path:
    """The run's folder, new and empty. ``run.resume = "auto"`` replaces a run that did not get to its first checkpoint.

    Raises:
        ConfigError: an earlier run is there and ``run.overwrite`` is off.
    """
    folder = run_folder(recipe)
    if folder.exists() and any(folder.iterdir()):
        if not recipe.run.overwrite and not (recipe.run.resume == "auto" and _died_early(folder)):
            raise ConfigError(
                f"run folder '{folder}' already holds a run: choose another run.name, set run.overwrite=true to replace it, "
                "or run.resume=auto to go on with it"
            )
        if not (folder / CONFIG).is_file():
            raise ConfigError(f"'{folder}' is not a run folder (no {CONFIG}); it is not replaced")
        named = [*(text for _, text in texts_in(recipe.model_dump(exclude={"run"}))), recipe.run.resume]
        inside = [text for text in named if _lies_in(text, folder)]
        if inside:
            raise ConfigError(
                f"replacing run '{folder}' would delete '{inside[0]}', which this run needs: choose another run.name"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_same_run(recipe: Recipe, saved: Path) -> None:
    """Refuse to go on from another run's checkpoint: settings that are fixed on resume must be as they were.

    Raises:
        ConfigError: naming the setting and both values.
        DataError: what is saved is damaged.
    """
    before = read_object(saved)
    now = json.loads(dump_resolved(recipe))
    for path in fixed_settings(recipe):
        old, new = _at(before, path), _at(now, path)
        if old != new:
            raise ConfigError(f"cannot go on with the run of '{saved}': {path} was {old}, this recipe says {new}")


def _at(tree: Any, path: str) -> Any:
    """What a setting is; of a section, those settings that are not none, which runs of earlier versions do not know; none of a
    table that is empty."""
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return {name: value for name, value in tree.items() if value is not None} or None if isinstance(tree, dict) else tree


def _died_early(folder: Path) -> bool:
    """Whether a run got neither to a checkpoint nor to its end, so that nothing is lost with it."""
    return not (folder / "result.json").exists() and not any((folder / CHECKPOINTS).glob("*step-*"))


def rewind(folder: Path, step: int) -> None:
    """Take back what a run wrote after its checkpoint of ``step`` trained steps: it will be written again.

    A last line that was cut short goes too; other lines that cannot be read go with a warning.
    """
    keep_records(folder / METRICS, lambda row: row["step"] < step or (row["step"] == step and "seconds/step" not in row))
    keep_records(folder / EVALUATIONS, lambda row: row["step"] <= step)
    for of, file in kept_trajectories(folder).items():
        if of >= step:
            file.unlink(missing_ok=True)
    for file in (folder / TRAJECTORIES).glob("*.writing"):
        file.unlink(missing_ok=True)


def trajectory_file(folder: Path, step: int) -> Path:
    """Where the trajectories of a step (counted from 0) of a run are."""
    return folder / TRAJECTORIES / f"step-{step:08d}.parquet"


def kept_trajectories(folder: Path) -> dict[int, Path]:
    """The files of trajectories in a run's folder, by step (counted from 0), in order."""
    found = ((STEP_FILE.fullmatch(file.name), file) for file in sorted((folder / TRAJECTORIES).glob("step-*.parquet")))
    return {int(name[1]): file for name, file in found if name is not None}


def save_records(run: Path, checkpoint: Path) -> dict[str, str]:
    """Put what a run on another machine needs besides its state into a checkpoint; returns the sha256 of each file."""
    digests = {}
    for name in RECORDS:
        if (run / name).is_file():
            with writing(checkpoint / name):
                shutil.copyfile(run / name, checkpoint / name)
                flush_file(checkpoint / name)
            digests[name] = sha256_file(checkpoint / name)
    return digests


def restore_records(checkpoint: Path, run: Path) -> None:
    """Give a run's folder the records that lie in a verified checkpoint."""
    run.mkdir(parents=True, exist_ok=True)
    for name in RECORDS:
        if (checkpoint / name).is_file():
            with writing(run / name):
                shutil.copyfile(checkpoint / name, run / name)


def seconds_of_work(folder: Path) -> float:
    """The time of all steps and evaluations that a run has recorded."""
    file = folder / METRICS
    lines = read_records(file) if file.is_file() else []
    return sum(line.get("seconds/step", 0.0) + line.get("eval/seconds", 0.0) for line in lines)


def recorded_steps(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run's steps; none of a run that began at another's last checkpoint."""
    return [line for line in read_records(folder / METRICS) if "seconds/step" in line]


def step_seconds(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a result says of the time of its steps: the median, or nothing when there are none."""
    seconds = [step["seconds/step"] for step in steps]
    # The first step warms up allocators and kernels; it is no measure of the rest.
    steady = sorted(seconds[1:] or seconds)
    return {"seconds_per_step": steady[len(steady) // 2]} if steady else {}


def keep_records(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Leave only such records in a JSON lines file; those that cannot be read go as well, and that is said."""
    if not path.is_file():
        return
    kept, lost, last = [], [], 0
    for number, line, row in iter_records(path):
        last = number
        if isinstance(row, Exception) or type(row.get("step")) is not int:
            lost.append(number)
        elif keep(row):
            kept.append(line.rstrip(b"\n") + b"\n")
    if lost and lost != [last]:
        logging.getLogger(__name__).warning("%s: line(s) %s cannot be read and were dropped", path, str(lost)[1:80].rstrip("]"))
    temporary = path.with_suffix(".rewound")
    with writing(temporary):
        temporary.write_bytes(b"".join(kept))
    temporary.rename(path)


def texts_in(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a plain tree of settings, with their dotted paths."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, str):
            yield f"{prefix}{key}", value
        else:
            yield from texts_in(value, f"{prefix}{key}.")


def _lies_in(text: str, folder: Path) -> bool:
    path = Path(text)
    return path.exists() and folder.resolve() in path.resolve().parents
