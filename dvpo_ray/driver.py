"""The driver: rows flow one way, weights flow back once a step.

prompts --> rollouts (vLLM) --> scorers (frozen value + reference) --> learner (DeepSpeed) --> weights back to rollouts
\______________ the feed, up to max_staleness steps ahead ________/
"""

from __future__ import annotations

from collections.abc import Callable

from dvpo_ray.config.algorithms import AdaptiveKl, KlControlConfig
from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.errors import FrozenValueChangedError
from dvpo_ray.feed import Feed
from dvpo_ray.health import alarms
from dvpo_ray.ledger import Ledger
from dvpo_ray.maths.kl_control import next_coefficient
from dvpo_ray.run import Run
from dvpo_ray.stages import Stages


def train(
    config: PolicyTraining, stages: Stages, ledger: Ledger, run: Run, evaluate: Callable[[int], None] = lambda step: None
) -> None:
    """Train for ``config.steps`` steps.

    Args:
        config: policy training settings.
        stages: the actors, or fakes.
        ledger: where rows come from.
        run: where metrics and spans go.
        evaluate: called with the number of finished steps when ``evaluation.every`` asks for it.

    Raises:
        FrozenValueChangedError: the value model is not bit for bit what it was at the start.
    """
    sealed = stages.scorers.value_hash()
    kl = KlControl(config.kl.control, config.rollout.rows_per_step)
    every = config.evaluation.every if config.evaluation else 0
    with Feed(stages, ledger, run, config.steps, config.off_policy.max_staleness, config.streaming) as feed:
        for step in range(config.steps):
            record, scored = feed.take(step)
            with record.span("learn"):
                result = stages.learner.step(step, kl.beta, scored)
            with record.span("sync"):
                served = stages.rollouts.sync(stages.learner.weights(result.version))
            ledger.trained_rows(result.row_ids)
            ledger.dead_letter_rows(result.dropped_ids)
            kl.observe(result.metrics["kl/per_answer"])
            record.commit(result, ledger.check(), served)
            for alarm in alarms(result.metrics, config):
                run.warn(step, alarm)
            if every and (step + 1) % every == 0 and step + 1 < config.steps:
                evaluate(step + 1)
                run.restart_clock()
            feed.trained(step + 1)
    found = stages.scorers.value_hash()
    if found != sealed:
        raise FrozenValueChangedError(f"value model parameters changed during the run: {sealed[:16]}... became {found[:16]}...")


class KlControl:
    """The KL coefficient of each step."""

    def __init__(self, control: KlControlConfig, rows_per_step: int) -> None:
        self._control = control
        self._rows = rows_per_step
        self.beta = control.coefficient

    def observe(self, kl_per_answer: float) -> None:
        """Adapt to the KL of the step just trained."""
        if isinstance(self._control, AdaptiveKl):
            self.beta = next_coefficient(self.beta, kl_per_answer, self._control.target, self._control.horizon, self._rows)
