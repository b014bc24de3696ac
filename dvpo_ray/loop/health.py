"""Numbers that give cause for doubt while a run goes on: said at once, and the end of the run when they stay."""

from __future__ import annotations

from collections.abc import Mapping

from dvpo_ray.config.updates import HealthSection
from dvpo_ray.errors import UnhealthyRunError


class HealthMonitor:
    """Looks at every step's metrics, and remembers for how many steps in a row something has been wrong."""

    def __init__(self, config: HealthSection) -> None:
        self._config = config
        self._in_a_row: dict[str, int] = {}

    def check(self, metrics: Mapping[str, float]) -> list[str]:
        """What is wrong with a step, a sentence each.

        Raises:
            UnhealthyRunError: something has been wrong for ``health.stop_after`` steps in a row.
        """
        found = alarms(metrics, self._config)
        self._in_a_row = {kind: self._in_a_row.get(kind, 0) + 1 for kind in found}
        for kind, count in self._in_a_row.items():
            if self._config.stop_after and count >= self._config.stop_after:
                raise UnhealthyRunError(f"for {count} steps in a row {found[kind]} (health.stop_after ends such a run)")
        return list(found.values())


def alarms(metrics: Mapping[str, float], config: HealthSection) -> dict[str, str]:
    """What is wrong with a step's metrics by kind, and what to look at."""
    found = {}
    gap = metrics.get("gap/abs_log_prob", 0.0)
    if gap > config.max_log_prob_gap:
        found["gap"] = (
            f"the engine's log-probs were {gap:.3f} nats from the learner's on average, more than health.max_log_prob_gap "
            f"({config.max_log_prob_gap}): the engine samples from another distribution than is trained. Look for different "
            "number types, a wrong temperature, or (with off_policy.max_staleness) weights that move fast"
        )
    kl = metrics.get("kl/per_token", 0.0)
    if kl > config.max_kl_per_token:
        found["kl"] = (
            f"the policy was {kl:.2f} nats a token from the reference, more than health.max_kl_per_token "
            f"({config.max_kl_per_token}): raise kl.control.coefficient or lower learner.learning_rate"
        )
    entropy = metrics.get("policy/entropy", float("inf"))
    if entropy < config.min_entropy:
        found["entropy"] = (
            f"the policy's entropy was {entropy:.4f} nats a token, less than health.min_entropy ({config.min_entropy}): it says "
            "always the same. Raise kl.control.coefficient or lower learner.learning_rate, and look at the answers"
        )
    cut = metrics.get("answer/cut_share", 0.0)
    if config.max_cut_share is not None and cut > config.max_cut_share:
        found["length"] = (
            f"{cut:.0%} of answers were cut at rollout.max_new_tokens, more than health.max_cut_share "
            f"({config.max_cut_share:.0%}): answers grow without end; look at them, and at what the value model says of long ones"
        )
    return found
