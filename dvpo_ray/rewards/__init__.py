"""Rewards beside the frozen value: of whole answers and of their tokens, each in a channel under a name of its own."""

from dvpo_ray.rewards.base import RewardChannel, RewardRow, Rewards, Score

__all__ = ["RewardChannel", "RewardRow", "Rewards", "Score"]
