"""How long policy training will take, before its first step, from the speed at which the value model trains."""

from __future__ import annotations

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.planning.devices import CPU_BANDWIDTH, Device
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.times import Efficiency, Workload, stage_seconds

# Engine, scorer and learner load their models, and an engine warms up.
START_S = 40.0


def policy_seconds(policy: PolicyTraining, shape: ModelShape, rows: float, prompt: float, answer: float, seconds: float) -> float:
    """Seconds of a policy training on the devices on which a value step over ``rows`` answers took ``seconds``; ``prompt`` and
    ``answer`` are mean lengths in tokens. Shares of the peak are as the planner assumes them."""
    efficiency = Efficiency()
    read = Workload(round(rows), prompt, answer)
    # A backward pass is twice a forward one.
    flops = 3 * shape.forward_flops(read.tokens, read.context) / seconds / efficiency.training
    device = Device("as measured", 0.0, flops, CPU_BANDWIDTH, flops, is_cpu=True)
    work = Workload.of(policy)
    stages = stage_seconds(policy, shape, device, efficiency, Workload(work.rows, prompt, work.answer))
    evaluated = 0.0
    if policy.evaluation is not None:
        times = 2 + (policy.steps // policy.evaluation.every if policy.evaluation.every else 0)
        held_out = (policy.evaluation.max_prompts or work.rows) * policy.evaluation.answers_per_prompt
        evaluated = times * held_out / work.rows * (stages["rollout"] + stages["score"])
    return START_S + policy.steps * sum(stages.values()) + evaluated
