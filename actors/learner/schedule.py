"""The learning rate of a step."""

from __future__ import annotations

import math

from dvpo_ray.config.sections import LearnerSection


def learning_rate_factor(step: int, config: LearnerSection, total_steps: int) -> float:
    """Share of the peak learning rate at ``step`` (0-based): linear warm-up, then constant, linear or cosine to 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def learning_rate(step: int, config: LearnerSection, total_steps: int) -> float:
    """The learning rate at ``step`` (0-based) of ``total_steps``."""
    return config.learning_rate * learning_rate_factor(step, config, total_steps)
