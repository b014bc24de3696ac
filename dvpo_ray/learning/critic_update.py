"""One step of an online critic on scored rows: the returns it is trained towards, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dvpo_ray.learning.batching import to_flat, to_padded
from dvpo_ray.maths.advantages import ppo_gae
from dvpo_ray.maths.losses import clipped_value_loss
from dvpo_ray.types import Ragged, ScoredBatch


@dataclass(frozen=True)
class CriticBatch:
    """Rows with the critic's values before the update, of the N_i states in which the policy wrote and the last, and the
    lambda-returns of all but the last (N_i a row)."""

    scored: ScoredBatch
    returns: Ragged

    @classmethod
    def of(cls, scored: ScoredBatch, rewards_bt: Tensor, mask_bt: Tensor, lam: float) -> CriticBatch:
        """From rows that hold the critic's values, and their tokens' rewards and mask [B, T]."""
        lengths = scored.actions.lengths
        v_bt, _ = to_padded(scored.actions.values.flat, lengths + 1)
        returns_bt = ppo_gae(v_bt, rewards_bt, mask_bt, lam) + v_bt[:, :-1]
        return cls(scored, Ragged(to_flat(returns_bt, mask_bt).numpy(), lengths))

    def metrics(self) -> dict[str, float]:
        """How the returns lie, and the share of their variance that the values explained before the update."""
        values = np.concatenate([row[:-1] for row in self.scored.actions.values.rows()])
        returns = self.returns.flat
        unexplained = float(np.var(returns - values) / max(float(np.var(returns)), 1e-8))
        return {"critic/returns": float(returns.mean()), "critic/explained_variance": 1.0 - unexplained}


def critic_loss(values: Tensor, batch: CriticBatch, rows: list[int], clip_range: float) -> Tensor:
    """Loss summed over states, a scalar; ``values`` [sum (N_i + 1)] are the critic's now, of ``rows``, with gradient."""
    lengths = batch.returns.lengths[rows]
    v_bt, _ = to_padded(values, lengths + 1)
    old_bt, _ = to_padded(batch.scored.actions.values.take(rows).flat, lengths + 1)
    returns_bt, active_bt = to_padded(batch.returns.take(rows).flat, lengths)
    device = v_bt.device
    # Nothing follows the last token: the value after it is never asked for, and not trained.
    return clipped_value_loss(v_bt[:, :-1], old_bt[:, :-1].to(device), returns_bt.to(device), active_bt.to(device), clip_range)
