"""Numbers that give cause for doubt."""

from __future__ import annotations

from dvpo_ray.config.recipes import PolicyTraining
from dvpo_ray.config.sections import DataSection
from dvpo_ray.health import alarms


def test_a_gap_between_engine_and_learner_warns_only_above_the_limit() -> None:
    config = PolicyTraining(data=DataSection(source="x", max_prompt_tokens=64))
    assert alarms({"gap/abs_log_prob": 0.05}, config) == []
    (text,) = alarms({"gap/abs_log_prob": 0.3}, config)
    assert "0.300 nats" in text and "rollout.max_log_prob_gap (0.25)" in text
