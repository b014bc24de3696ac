"""What an online critic would add: PPO trains a second model and reads every answer with a reward model besides."""

from __future__ import annotations

from dataclasses import dataclass

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.planning.devices import Device
from dvpo_ray.planning.memory import trained_bytes
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.times import Efficiency, Workload, critic_seconds


@dataclass(frozen=True)
class OnlineCritic:
    """Seconds a step and bytes of model state on each learner rank that PPO needs beyond DVPO, with models of one size."""

    scoring: float
    learning: float
    memory: float


def online_critic(
    policy: PolicyTraining, shape: ModelShape, device: Device, efficiency: Efficiency, work: Workload
) -> OnlineCritic:
    """The critic's updates and their optimizer, and one more pass over the answers.

    Both read the answers with the reference model. DVPO reads them with the frozen value model; PPO with the reward model and
    with its critic, whose values before the update it needs.
    """
    body = shape.forward_flops(work.tokens, work.context)
    return OnlineCritic(
        scoring=body / policy.scorer.actors / (device.speed(policy.scorer.dtype) * efficiency.forward),
        learning=critic_seconds(policy, shape, device, efficiency, work),
        memory=sum(trained_bytes(shape.value_parameters, policy.learner).values()),
    )
