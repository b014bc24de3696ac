"""The KL coefficient over a run."""

from __future__ import annotations


def next_coefficient(beta: float, kl_per_answer: float, target: float, horizon: int, answers: int) -> float:
    """Proportional control of beta towards a target KL (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    Args:
        beta: the coefficient now.
        kl_per_answer: measured KL of whole answers, mean, in nats.
        target: wanted KL, in nats.
        horizon: answers over which a full correction is spread.
        answers: answers seen since the last call.
    """
    error = min(max(kl_per_answer / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + error * answers / horizon)
