"""The demo: value pretraining, then policy training with the value model it made, then the report."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from actors.cluster.session import ray_session
from dvpo_ray.config import PipelineRecipe, dump_resolved
from dvpo_ray.config.loading import CONFIG
from dvpo_ray.errors import DataError
from dvpo_ray.io.disk import write_text
from dvpo_ray.io.json_files import REMEDY, check_numbers, read_object
from dvpo_ray.report import write_report
from dvpo_ray.runs.folder import locked, run_folder
from dvpo_ray.runs.run import RESULT, Listener, prepare_folder, write_json
from dvpo_ray.runs.status import status_kept
from dvpo_ray.runs.stopping import Stop
from jobs.cli import main as cli
from jobs.models import base_model, settle_devices, verified_advantage, verified_rewards, with_model
from jobs.preflight import check_engines
from jobs.pretrain_value import pretrain_value
from jobs.resume import models_in
from jobs.session import job
from jobs.train_policy import train_policy


def run_pipeline(recipe: PipelineRecipe, listener: Listener = lambda event: None) -> dict[str, Any]:
    """Run both trainings on one Ray; returns what ``result.json`` holds. ``run.resume = "auto"`` keeps a finished first half.

    Raises:
        RunStoppedError: the run was asked to stop; when that was at the end of the first half, the second is not begun.
    """
    with job(listener) as stop, locked(run_folder(recipe)):
        return _run_pipeline(recipe, listener, stop)


def _finished_value(result: Path) -> dict[str, Any]:
    """What an earlier driver wrote of the first half.

    Raises:
        DataError: naming what of it is not as it was written.
    """
    found = read_object(result)
    check_numbers(found, (*_accuracies(found), "peak_memory_gb", "seconds_total"), str(result))
    if not isinstance(found.get("value_model"), str):
        raise DataError(f"{result}: 'value_model' is no folder; {REMEDY}")
    return found


def _accuracies(value: dict[str, Any]) -> list[str]:
    """The accuracies that the first half measured: none where no pair was held out."""
    return [name for name in ("gvm_pair_accuracy_mean", "gvm_pair_accuracy_last") if name in value]


def _run_pipeline(recipe: PipelineRecipe, listener: Listener, stop: Stop) -> dict[str, Any]:
    began = time.time()
    # What is wrong with another model shows before the first half is trained, not after it.
    resuming = recipe.run.resume == "auto" and (run_folder(recipe) / CONFIG).is_file()
    base = base_model(recipe.model, listener, models_in(run_folder(recipe) / CONFIG) if resuming else {})
    recipe = with_model(recipe, base)
    verified_rewards(recipe.policy.rewards, base)
    verified_advantage(recipe.policy.advantage, base)
    settled, _ = settle_devices(recipe, base)
    check_engines(settled, base.folder, listener)
    folder = run_folder(recipe) if resuming else prepare_folder(recipe)
    write_text(folder / CONFIG, dump_resolved(recipe))
    with status_kept(folder, stop), ray_session(recipe.cluster):
        done = folder / "value" / RESULT
        finished = resuming and done.is_file()
        value = _finished_value(done) if finished else pretrain_value(recipe.value_recipe(), listener, settled.policy)
        stop.kept = lambda: "the finished value model"
        policy = train_policy(recipe.policy_recipe(value["value_model"]), listener)
    result = policy | {
        **{name: value[name] for name in _accuracies(value)},
        "value_model": value["value_model"],
        "peak_memory_gb": max(value["peak_memory_gb"], policy["peak_memory_gb"]),
        "peak_memory_gb_value": value["peak_memory_gb"],
        "peak_memory_gb_policy": policy["peak_memory_gb"],
        "seconds_value": value["seconds_total"],
        "seconds_policy": policy["seconds_total"],
        "seconds_total": time.time() - began,
    }
    write_json(folder / RESULT, result)
    result["report"] = str(Path(write_report(folder)).resolve())
    return result


# A Ray job: `python -m jobs.pipeline RECIPE [--set KEY=VALUE]`.
if __name__ == "__main__":
    cli.main(["demo", *sys.argv[1:]])
