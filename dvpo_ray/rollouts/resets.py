"""`resets`: some prompts are answered from within a good answer (DR-PO, arXiv 2404.08495)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np

from dvpo_ray.config.plans import Resets
from dvpo_ray.errors import DataError
from dvpo_ray.maths.seeds import sampling_seed
from dvpo_ray.rollouts.base import PlanContext
from dvpo_ray.rollouts.shuffled import ShuffledPlan
from dvpo_ray.types import RolloutRequest


class ResetsPlan(ShuffledPlan):
    """The prompts of ``shuffled``; where a good answer to a prompt is known, a share of the visits begins within it.

    All answers of a visit begin with the same tokens, so that they can be compared. How many is drawn evenly from one to all but
    one, within ``rollout.max_new_tokens`` less one.
    """

    def __init__(self, settings: Resets, context: PlanContext) -> None:
        """Raises DataError when no prompt has a good answer."""
        super().__init__(settings, context)
        self._fraction = settings.fraction
        self._good: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        for row in context.demonstrations(settings.data):
            if len(row.answer_ids) > 1:
                self._good[row.prompt_key].append(tuple(row.answer_ids))
        if not any(prompt.prompt_key in self._good for prompt in context.prompts):
            raise DataError(
                f"plan.data '{settings.data.source}' has no answer of two tokens or more to any of the {len(context.prompts)} "
                "prompts of policy.data: name the pairs that the prompts are from"
            )

    def requests(self, step: int) -> list[RolloutRequest]:
        """Those of ``shuffled``, some with forced tokens."""
        keys = {slot: prompt.prompt_key for slot, prompt in self.prompts_of(step)}
        forced = {slot: self._forced(slot, key) for slot, key in keys.items()}
        return [replace(request, forced_ids=forced[request.row.slot]) for request in super().requests(step)]

    def _forced(self, slot: int, prompt_key: str) -> tuple[int, ...]:
        """The tokens with which all answers of a visit begin; none where it begins anew."""
        answers = self._good.get(prompt_key, [])
        random = np.random.default_rng(sampling_seed(self.context.seed, "reset", slot, 0))
        if not answers or random.random() >= self._fraction:
            return ()
        answer = answers[int(random.integers(len(answers)))]
        most = min(len(answer) - 1, self.context.policy.rollout.max_new_tokens - 1)
        return answer[: int(random.integers(1, most + 1))]
