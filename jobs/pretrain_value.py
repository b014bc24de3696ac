"""Value pretraining as a Ray job: preference pairs and labelled answers in, a sealed, frozen value (or reward) model out."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.learner.gang import ValueLearner
from dvpo_ray.config import ValueRecipe
from dvpo_ray.config.recipes import PolicyTraining, ValueTraining
from dvpo_ray.config.targets import RewardTarget, TargetConfig
from dvpo_ray.data import EncodedPair, LoadCounts, Preference, template_hash, tokenizer_hash
from dvpo_ray.errors import RunStoppedError
from dvpo_ray.learning.pairs import batches, unit
from dvpo_ray.learning.value_update import resolve_target
from dvpo_ray.loop.offline import PairTrainer
from dvpo_ray.models.value_model import seal
from dvpo_ray.planning.ahead import policy_seconds
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.runs.run import LOGS, Listener, Run
from jobs.cli import main as cli
from jobs.held_out_answers import measure
from jobs.inputs import read_pairs, read_preferences
from jobs.models import BaseModel
from jobs.session import leaving, running_actors, session

VALUE_MODEL, REWARD_MODEL = "value-model", "reward-model"


def pretrain_value(
    recipe: ValueRecipe, listener: Listener = lambda event: None, follows: PolicyTraining | None = None
) -> dict[str, Any]:
    """Train, evaluate on held-out prompts, seal; returns what ``result.json`` holds. ``follows`` is the rest of the job.

    Raises:
        RunStoppedError: the run was asked to stop, and did after a checkpoint; when something follows, also at its end,
            after its result was written.
    """
    with session(recipe, recipe.value.checkpoint, listener) as s:
        recipe, base, run = s.recipe, s.base, s.run
        value = recipe.value
        train, held_out, counts = _read(value, base, run.folder, run)
        base.limits.check_rows(train, value.data.source)
        base.limits.check_rows(held_out, value.data.held_out_source)
        steps = batches(len(train), value.pairs_per_step, value.epochs, recipe.run.seed)
        s.check_data(train, len(steps))
        units = list(map(unit, train))
        mean_tokens = float(np.mean([answer.response_ids.size for one in units for answer in one]))
        lengths = float(np.mean([len(row.prompt_ids) for row in train])), mean_tokens
        target = resolve_target(value.target, mean_tokens)
        answers_per_step = value.pairs_per_step * sum(map(len, units)) / len(units)
        pairs = len([one for one in units if len(one) == 2])
        told = f"{_counted(train)} to train on, {_counted(held_out)} held out"
        run.phase(f"{told}; starting {value.learner.ranks} learner rank(s)")
        with s.training(), running_actors(recipe.cluster, run.folder / LOGS, run.stop) as started:
            gang = ValueLearner(str(base.place), recipe.model, value, recipe.cluster, recipe.run.seed, len(steps))
            started.append(gang)
            gang.wait_ready()
            run.doubt([gang])
            run.pace.later = partial(_seconds_after, value, len(held_out), answers_per_step, base, lengths, follows)

            def learn(step: int, rows: np.ndarray) -> dict[str, float]:
                return gang.call("step", [units[i] for i in rows], target, doing=f"value step {step}")[0]

            names, soon = [row.row_id for row in train], partial(leaving, gang)
            PairTrainer(names, steps, s.data_sha256, learn, gang, run, s.checkpointer(gang), soon).train(s.checkpoint)
            target_folder = (run.folder / (REWARD_MODEL if isinstance(target, RewardTarget) else VALUE_MODEL)).resolve()
            # Reading a pair takes less than training on it.
            with run.stop.finishing(partial(_plan_of_rest, run, len(held_out) / value.pairs_per_step)):
                run.phase("measuring accuracy on held-out prompts")
                accuracy = measure(gang, held_out, target)
                run.phase("saving and sealing the model")
                gang.call("save", str(target_folder), doing="saving the model")
                # Hashes every file: a model without its seal would be lost work.
                _seal(target_folder, base, pairs, len(train) - pairs, s.data_sha256, target, accuracy)
        result = s.result(
            {
                **_figures(target, target_folder, accuracy),
                "pairs": pairs,
                "answers": len(train) - pairs,
                "rows": {"read": counts.read, "kept": counts.kept, "rejected": counts.rejected},
                "held_out_pairs": accuracy["pairs"],
                "held_out_answers": accuracy["answers"],
                "accuracy_by_aggregate": accuracy["by_aggregate"],
                "label_concordance_by_aggregate": accuracy["label_concordance"],
                "target": target.model_dump(),
            }
        )
    if follows is not None and run.stopping:
        raise RunStoppedError.as_asked("after value training")
    return result


def _read(value: ValueTraining, base: BaseModel, folder: Path, run: Run) -> tuple[list[Preference], list[Preference], LoadCounts]:
    """Rows to train on, held-out rows, and the counts of the former."""
    if value.labels == "all":
        return read_preferences(value.data, base.tokenizer, folder, run.phase, value.label_scale)
    train, held_out, counts = read_pairs(value.data, base.tokenizer, folder, run.phase)
    return [*train], [*held_out], counts


def _counted(rows: list[Preference]) -> str:
    """ "60 pairs and 20 answers"."""
    pairs = sum(isinstance(row, EncodedPair) for row in rows)
    return f"{pairs} pairs" + (f" and {len(rows) - pairs} answers" if len(rows) > pairs else "")


def _seconds_after(
    value: ValueTraining,
    held_out: int,
    answers_per_step: float,
    base: BaseModel,
    lengths: tuple[float, float],
    follows: PolicyTraining | None,
    step_seconds: float,
) -> float | None:
    """Time of what comes after the last value step, given mean ``lengths`` of prompts and answers in tokens; None where planning
    does not know the model. Reading a pair takes a third of training on it."""
    measuring = step_seconds * held_out / value.pairs_per_step / 3
    if follows is None:
        return measuring
    rows, shape = round(answers_per_step * value.inner_epochs), ModelShape.if_known(base.folder)
    if shape is None:
        return None
    return measuring + policy_seconds(follows, shape, rows, *lengths, step_seconds)


def _plan_of_rest(run: Run, steps: float) -> str:
    """What a stop after the last step does; reading the held-out pairs takes as long as so many steps."""
    measuring = run.pace.steps_take(steps)
    seconds = None if measuring is None else measuring + run.pace.checkpoint_seconds
    return run.pace.plan_of_rest("measuring pair accuracy and saving the model", seconds)


def _figures(target: TargetConfig, folder: Path, accuracy: dict[str, Any]) -> dict[str, Any]:
    """Where the model is and what counts of it: of a reward model the last value alone."""
    if isinstance(target, RewardTarget):
        return {
            "reward_model": str(folder),
            "reward_pair_accuracy": accuracy["last"],
            "reward_pair_accuracy_ci95": accuracy["last_ci95"],
        }
    names = ("mean", "last", "mean_ci95", "last_ci95")
    of_value = {f"gvm_pair_accuracy_{name}": accuracy[name] for name in names if name in accuracy}
    if accuracy["label_concordance"]:
        of_value["gvm_label_concordance"] = accuracy["label_concordance"]["mean"]
    return {"value_model": str(folder)} | of_value


def _seal(
    folder: Path,
    base: BaseModel,
    pairs: int,
    answers: int,
    data_sha256: str,
    target: TargetConfig,
    accuracy: dict[str, Any],
) -> None:
    seal(
        folder,
        **base.origin,
        tokenizer_sha256=tokenizer_hash(base.tokenizer),
        chat_template_sha256=template_hash(base.tokenizer),
        data_sha256=data_sha256,
        pairs=pairs,
        answers=answers,
        target=target.model_dump(),
        value_mean=accuracy["value_mean"],
        value_std=accuracy["value_std"],
        held_out_pairs=accuracy["pairs"],
        held_out_accuracy=accuracy["by_aggregate"],
    )


# A Ray job: `python -m jobs.pretrain_value RECIPE [--set KEY=VALUE]`.
if __name__ == "__main__":
    cli.main(["value", "train", *sys.argv[1:]])
