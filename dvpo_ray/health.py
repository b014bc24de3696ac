"""Numbers that give cause for doubt while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping

from dvpo_ray.config.recipes import PolicyTraining


def alarms(metrics: Mapping[str, float], config: PolicyTraining) -> list[str]:
    """What is wrong with a step's metrics, and what to look at, a sentence each."""
    found = []
    gap, limit = metrics.get("gap/abs_log_prob", 0.0), config.rollout.max_log_prob_gap
    if gap > limit:
        found.append(
            f"the engine's log-probs are {gap:.3f} nats from the learner's on average, more than "
            f"rollout.max_log_prob_gap ({limit}): the engine samples from another distribution than is trained. Look for "
            "different number types, a wrong temperature, or (with off_policy.max_staleness) weights that move fast"
        )
    return found
