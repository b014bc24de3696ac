"""Fitting the planner to a run: shares of a device's peak from the stage times that were measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import CONFIG, build
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.errors import UserInputError
from dvpo_ray.io.json_files import check_numbers, read_object, read_records
from dvpo_ray.planning.devices import Device
from dvpo_ray.planning.memory import element_size
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.times import STAGES, Efficiency, Workload, decode_step, learn_seconds, rollout_seconds, score_seconds


def recipe_of(run: Path) -> PolicyRecipe:
    """The recipe that a policy run was started with.

    Raises:
        UserInputError: the folder holds none, or its stages were not timed one by one.
    """
    file = run / CONFIG
    tree = read_object(file) if file.is_file() else {}
    if "policy" not in tree or "value" in tree:
        raise UserInputError(f"'{run}' holds no policy run: give the folder with its {CONFIG} and metrics.jsonl")
    recipe = build(PolicyRecipe, tree)
    policy = recipe.policy
    if policy.streaming or policy.off_policy.max_staleness or policy.scorer.rows_per_call < policy.rollout.rows_per_step:
        raise UserInputError(
            f"the stages of '{run}' overlapped, so their times cannot be told apart: measure a run without streaming and "
            "staleness, and with scorer.rows_per_call of a whole step"
        )
    return recipe


def measured(run: Path) -> tuple[dict[str, float], float]:
    """Median seconds of each stage, and mean answer tokens, of a policy run after its first step.

    Raises:
        UserInputError: the folder holds no policy run with enough steps.
    """
    file = run / "metrics.jsonl"
    steps = [line for line in read_records(file) if "seconds/rollout" in line][1:]
    if not steps:
        raise UserInputError(f"'{run}' holds no policy run of two or more steps: give the folder with its metrics.jsonl")
    for step in steps:
        check_numbers(step, (*(f"seconds/{stage}" for stage in (*STAGES, "step")), "answer/tokens"), str(file))
    seconds = {stage: median(line[f"seconds/{stage}"] for line in steps) for stage in (*STAGES, "step")}
    return seconds, sum(line["answer/tokens"] for line in steps) / len(steps)


def calibrated(
    policy: PolicyTraining, shape: ModelShape, device: Device, work: Workload, seconds: dict[str, float]
) -> Efficiency:
    """The efficiency under which the run that ``policy`` describes takes the ``seconds`` measured."""
    found = Efficiency(step_overhead=0.0, sync_bandwidth=element_size(policy.learner.dtype) * shape.parameters / seconds["sync"])
    found = replace(found, forward=found.forward * score_seconds(policy, shape, device, found, work) / seconds["score"])
    at_peak, at_half = (
        learn_seconds(policy, shape, device, replace(found, training=share, bandwidth=1.0), work) for share in (1.0, 0.5)
    )
    arithmetic = at_half - at_peak
    optimizer = at_peak - arithmetic
    found = replace(found, training=arithmetic / max(seconds["learn"] - optimizer, 1e-9), bandwidth=1.0)
    missing = seconds["rollout"] - rollout_seconds(policy, shape, device, found, work)
    rows = work.rows / policy.rollout.actors
    decoding_steps = max(1.0, rows / policy.rollout.engine.max_num_seqs) * work.answer
    if missing >= 0:
        return replace(found, step_overhead=missing / decoding_steps)
    active = min(rows, policy.rollout.engine.max_num_seqs)
    ideal = decode_step(shape, device, found, policy.rollout.engine, active, work.prompt + work.answer / 2)
    return replace(found, step_overhead=max(-ideal * 0.9, missing / decoding_steps))
