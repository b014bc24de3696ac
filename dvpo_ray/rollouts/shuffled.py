"""`shuffled`: every prompt once an epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dvpo_ray.config.plans import PlanSettings
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.maths.seeds import sampling_seed
from dvpo_ray.rollouts.base import PlanContext, StatelessPlan
from dvpo_ray.types import RolloutRequest, RowId


class ShuffledPlan(StatelessPlan):
    """Prompts in a seeded order, every prompt once per epoch; the place in it is a function of the step alone."""

    def __init__(self, settings: PlanSettings, context: PlanContext) -> None:
        self.context = context

    def requests(self, step: int) -> list[RolloutRequest]:
        """``answers_per_prompt`` requests for each of a step's prompts, each with a seed of its own; those of a prompt are a
        group."""
        context = self.context
        return [
            RolloutRequest(
                row=RowId(step, slot, prompt.row_id, answer),
                prompt_ids=tuple(prompt.prompt_ids),
                seed=sampling_seed(context.seed, "train", slot, answer),
                group_id=slot,
                environment=context.environment,
                columns=prompt.columns,
            )
            for slot, prompt in self.prompts_of(step)
            for answer in range(context.policy.rollout.answers_per_prompt)
        ]

    def prompts_of(self, step: int) -> Iterator[tuple[int, EncodedPrompt]]:
        """(place in the order of all epochs, prompt) of a step."""
        prompts, count = self.context.prompts, self.context.policy.rollout.prompts_per_step
        orders: dict[int, np.ndarray] = {}
        for slot in range(step * count, (step + 1) * count):
            epoch, offset = divmod(slot, len(prompts))
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((self.context.seed, epoch)).permutation(len(prompts))
            yield slot, prompts[int(orders[epoch][offset])]
