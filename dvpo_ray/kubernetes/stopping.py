"""How a job on Kubernetes ends: the time it has for a checkpoint, and the hook by which its pods wait for that.

The operator stops no job before it deletes or suspends: all pods are told to end at once. So each pod has a preStop hook
(`dvpo jobs drain`) that keeps it until the job has ended; the head's asks the job to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dvpo_ray.config import Recipe
from dvpo_ray.kubernetes.manifests import Tree
from dvpo_ray.planning.trainings import TrainingPlan
from dvpo_ray.runs.pace import CHECKPOINT_BYTES_PER_S
from dvpo_ray.runs.stopping import ENDING_S
from dvpo_ray.submission.package import seconds_to_stop

# A plan's times are those of well-fed devices, and a step may have begun a moment ago.
PLANNED_STEPS = 4
SHORTEST_S = 300
# The job server kills a job that does not end; the hook sees that, and then Ray itself ends.
HOOK_MARGIN_S = 30
ENDING_MARGIN_S = 60
# How long a pod stays that holds no state and is taken away alone: its work is asked of others.
REPLACEABLE_S = 60
DRAIN = ("dvpo", "jobs", "drain")
WAIT, STOP, ALONE = "--wait-s", "--stop", "--alone-s"


@dataclass(frozen=True)
class StopTimes:
    """Seconds: what a job has to checkpoint and end, how long the hooks of its pods wait for that, and the pods' grace period."""

    job: int

    @property
    def hook(self) -> int:
        """Longer than the job may take."""
        return self.job + HOOK_MARGIN_S

    @property
    def grace(self) -> int:
        """Longer than the hook may take, which counts."""
        return self.hook + ENDING_MARGIN_S


def stop_times(recipe: Recipe, plans: Sequence[TrainingPlan]) -> StopTimes:
    """Those of a recipe: as it says, or from what is planned for its slowest training, within the deadlines of its stages."""
    given = recipe.kubernetes.stop_wait_s
    if given != "auto":
        return StopTimes(given)
    return StopTimes(math.ceil(max(_seconds(plan, recipe.cluster.call_timeout_s) for plan in plans)))


def _seconds(plan: TrainingPlan, call_timeout_s: float) -> float:
    checkpoint = plan.training.checkpoint
    planned = PLANNED_STEPS * plan.step_s + plan.checkpoint_bytes / CHECKPOINT_BYTES_PER_S + ENDING_S
    copies = checkpoint.copy_wait_s if checkpoint.copy_to is not None else 0.0
    return max(SHORTEST_S, min(planned + copies, seconds_to_stop(plan.training, call_timeout_s)))


def drain_hook(times: StopTimes, head: bool, gang: bool) -> Tree:
    """The lifecycle of a container of Ray's. The gang's pods stay as long when they alone are taken away: their ranks checkpoint
    every step from then on, and go on elsewhere."""
    command = [*DRAIN, WAIT, str(times.hook)]
    if head:
        command.append(STOP)
    elif not gang:
        command += [ALONE, str(min(REPLACEABLE_S, times.hook))]
    return {"preStop": {"exec": {"command": command}}}
