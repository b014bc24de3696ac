"""What an online critic would add: PPO trains a second model and reads every answer with a reward model besides."""

from __future__ import annotations

from dataclasses import dataclass

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.planning.devices import Device
from dvpo_ray.planning.memory import trained_bytes
from dvpo_ray.planning.shapes import ModelShape
from dvpo_ray.planning.times import Efficiency, Workload


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
    learner, ppo = policy.learner, policy.ppo
    updates = ppo.inner_epochs * ppo.mini_batches
    sharded = learner.ranks if learner.zero_stage else 1
    optimizer = updates * 32 * shape.value_parameters / sharded / (device.bandwidth * efficiency.bandwidth)
    recomputed = 1 if learner.gradient_checkpointing else 0
    return OnlineCritic(
        scoring=body / policy.scorer.actors / (device.flops * efficiency.forward),
        learning=ppo.inner_epochs * (3 + recomputed) * body / learner.ranks / (device.flops * efficiency.training) + optimizer,
        memory=sum(trained_bytes(shape.value_parameters, learner.zero_stage, learner.ranks, learner.dtype).values()),
    )
