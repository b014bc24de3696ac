"""Held-out evaluations of a run: who answers what, what is recorded, and what its result says of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.config.environments import EnvironmentSettings
from dvpo_ray.config.sections import CheckpointSection, DataSection, EvaluationSection
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.evaluation.held_out import Evaluation, Evaluator, compare
from dvpo_ray.io.disk import LineFile
from dvpo_ray.runs.folder import EVALUATIONS
from dvpo_ray.runs.run import Run
from dvpo_ray.stages import Rollouts, Scorers
from jobs.inputs import read_evaluation_prompts
from jobs.models import BaseModel


def make_evaluator(
    section: EvaluationSection | None,
    data: DataSection,
    advantage: AlgorithmSettings,
    base: BaseModel,
    folder: Path,
    trained_on: Sequence[EncodedPrompt],
    seed: int,
    environment: EnvironmentSettings | None = None,
) -> Evaluator | None:
    """Who answers the prompts of a recipe's evaluation; None when it has none.

    Raises:
        DataError: a held-out prompt is trained on, or the model cannot read it.
    """
    if section is None:
        return None
    held_out = read_evaluation_prompts(section, data, base, folder, trained_on)
    return Evaluator(held_out, section.answers_per_prompt, section.gold, advantage, base.tokenizer, seed, environment)


def kept_by(checkpoint: CheckpointSection, section: EvaluationSection | None, run: Run) -> dict[str, str]:
    """What ``checkpoint.keep_best`` compares, for a result; the run says so. Empty when no checkpoint is kept for its score."""
    if not checkpoint.keep_best or section is None:
        return {}
    advice = "" if section.gold else ", which is what training raises: set evaluation.gold to compare by something else"
    run.phase(f"checkpoint.keep_best compares checkpoints by their {section.compared_by}{advice}")
    return {"kept_best_by": section.compared_by}


def evaluate(evaluator: Evaluator, step: int, rollouts: Rollouts, scorers: Scorers, run: Run, every: int = 0) -> Evaluation:
    """Answer all held-out prompts with the weights the engines serve now, and record it as that of ``step`` trained steps.

    Others follow after each ``every`` steps, and after the last.
    """
    run.phase(f"answering held-out prompts after {step} steps")
    began = time.time()
    evaluation = evaluator.run(step, rollouts, scorers)
    ended = time.time()
    pace = run.pace
    pace.later = lambda step_seconds: (ended - began) * (1 + (pace.total - 1) // every - pace.done // every if every else 1)
    run.timeline.add("evaluate", began, ended, step=step)
    with LineFile(run.folder / EVALUATIONS) as file:
        file.add(*map(json.dumps, evaluation.rows()))
    summary = evaluation.summary() | {"seconds": ended - began}
    run.log(step, {f"eval/{name}": value for name, value in summary.items()}, "evaluation")
    return evaluation


def figures(evaluations: Mapping[int, Evaluation]) -> dict[str, Any]:
    """What a result says of the first and the last of a run's evaluations, by trained steps."""
    if not evaluations:
        return {}
    first, last = evaluations[min(evaluations)], evaluations[max(evaluations)]
    before, after = first.summary(), last.summary()
    found: dict[str, Any] = {
        "kl_per_token": after["kl_per_token"],
        "tokens_before": before["tokens"],
        "tokens_after": after["tokens"],
        "cut_share_before": before["cut_share"],
        "cut_share_after": after["cut_share"],
        "cut_share_after_ci95": [after["cut_share_ci95_low"], after["cut_share_ci95_high"]],
    }
    if "gold" not in after:
        return found
    return found | {
        "gold_before": before["gold"],
        "gold_before_ci95": [before["gold_ci95_low"], before["gold_ci95_high"]],
        "gold_after": after["gold"],
        "gold_after_ci95": [after["gold_ci95_low"], after["gold_ci95_high"]],
        **compare(first, last),
    }
