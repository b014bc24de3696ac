"""A plan as plain data: what ``dvpo plan`` prints."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dvpo_ray.config import PipelineRecipe, PolicyRecipe, Recipe
from dvpo_ray.errors import UserInputError
from dvpo_ray.models.packaged import config_folder
from dvpo_ray.planning.calibration import calibrated, measured, recipe_of
from dvpo_ray.planning.compare import online_critic
from dvpo_ray.planning.device_defaults import ROLES, Choices, settle
from dvpo_ray.planning.devices import parse_devices
from dvpo_ray.planning.memory import GB
from dvpo_ray.planning.plan import Plan, cluster_of, make_plan, with_split
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.simulate import simulate
from dvpo_ray.planning.times import Efficiency, Workload, stage_seconds, step_seconds

SIMULATED_STEPS = 40
SCALES = (1, 4, 16, 64)
MOST_DEVICES = 1000


def describe(recipe: Recipe, devices: str, model: Path | None, run: Path | None, answer_tokens: float | None) -> dict[str, Any]:
    """Plan a recipe; all sizes in GB (10^9 bytes), all times in seconds.

    Raises:
        UserInputError: the recipe has no policy training, or devices, model or run are not what they should be.
    """
    if not isinstance(recipe, PolicyRecipe | PipelineRecipe):
        raise UserInputError("a training on pairs has one stage: plan a recipe with [policy]")
    group = parse_devices(devices)
    shape = ModelShape.from_folder(config_folder(recipe.model, model))
    made: tuple[PolicyRecipe | PipelineRecipe, Choices] = settle(recipe, {role: [group.device.facts] for role in ROLES}, shape)
    recipe, chosen = made
    policy = recipe.policy
    work = Workload.of(policy, answer_tokens or policy.rollout.max_new_tokens / 2)
    efficiency = Efficiency()
    if run is not None:
        seconds, tokens = measured(run)
        work = Workload.of(policy, answer_tokens or tokens)
        done = recipe_of(run)
        its_shape = ModelShape.from_folder(config_folder(done.model))
        efficiency = calibrated(done.policy, its_shape, group.device, Workload.of(done.policy, tokens), seconds)
    plan = make_plan(policy, shape, recipe.model.attention, group, work, efficiency)
    critic = online_critic(policy, shape, group.device, efficiency, work)
    with_critic = plan.stages | {"score": plan.stages["score"] + critic.scoring, "learn": plan.stages["learn"] + critic.learning}
    outcome = simulate(cluster_of(policy, shape, group.device, efficiency, work), SIMULATED_STEPS)
    return {
        "devices": f"{group.count} x {group.device.name}",
        "parameters": shape.parameters,
        "number_types": chosen.number_types,
        "processes": [
            {"name": p.name, "count": p.count, "gb": p.total / GB, "parts": {k: v / GB for k, v in p.parts.items()}}
            for p in plan.processes
        ],
        "total_gb": sum(p.total * p.count for p in plan.processes) / GB,
        "seconds": plan.stages,
        "step_seconds": plan.step,
        "bottleneck": plan.bottleneck,
        "simulated_step_seconds": None if plan.shared_devices else outcome.seconds_per_step,
        "idle": {} if plan.shared_devices else outcome.idle,
        "online_critic": {
            "step_seconds": step_seconds(with_critic, policy.off_policy.max_staleness, plan.shared_devices),
            "gb_per_rank": critic.memory / GB,
        },
        "efficiency": asdict(efficiency),
        "scaling": [] if plan.shared_devices else _scaling(plan, recipe, shape, group.device, efficiency, work),
        "problems": plan.problems,
        "advice": plan.advice,
    }


def _scaling(
    plan: Plan, recipe: PolicyRecipe | PipelineRecipe, shape: ModelShape, device: Any, efficiency: Efficiency, work: Workload
) -> list[dict[str, float]]:
    """Simulated step time when processes and answers of a step grow together: what is lost to answers of unequal length.

    Time to exchange gradients and weights between machines is not counted.
    """
    policy = recipe.policy
    split = plan.best
    if split is None:
        return []
    rows = []
    for factor in (n for n in SCALES if n * split.devices <= MOST_DEVICES):
        grown = replace(split, rollouts=split.rollouts * factor, scorers=split.scorers * factor, ranks=split.ranks * factor)
        scaled = with_split(policy, grown)
        more = replace(work, rows=work.rows * factor)
        outcome = simulate(cluster_of(scaled, shape, device, efficiency, more), SIMULATED_STEPS)
        ideal = step_seconds(
            stage_seconds(scaled, shape, device, efficiency, more), policy.off_policy.max_staleness, shared_devices=False
        )
        rows.append(
            {
                "devices": split.devices * factor,
                "answers_per_step": more.rows,
                "step_seconds": outcome.seconds_per_step,
                "ideal_step_seconds": ideal,
                "answers_per_second": more.rows / outcome.seconds_per_step,
            }
        )
    return rows
