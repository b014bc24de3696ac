"""One step of policy learning on scored rows: advantages, mini-batches and the clipped loss.

This file knows nothing of processes. A learner rank calls ``prepare`` once per step, ``mini_batch_rows`` once per inner
epoch and ``loss`` once per micro-batch; sums over ranks are its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.algorithms import Signals, advantages
from dvpo_ray.config.algorithms import AdvantageConfig, KlSection, OffPolicySection, PpoUpdateSection
from dvpo_ray.config.rewards import RewardConfig
from dvpo_ray.learning.batching import to_flat, to_padded
from dvpo_ray.learning.staleness import ages, token_weights
from dvpo_ray.maths.losses import clipped_policy_loss, kl_k3, kl_rewards
from dvpo_ray.maths.masked import moments, whiten
from dvpo_ray.rows import Ragged, ScoredBatch


@dataclass(frozen=True)
class PreparedBatch:
    """Scored rows with their whitened advantages and their tokens' ages (ragged, T_i per row).

    ``moments`` [3] are those of the advantages before whitening (``dvpo_ray.maths.masked.moments``).
    """

    scored: ScoredBatch
    advantages: Ragged
    ages: Ragged
    moments: Tensor


def prepare(
    scored: ScoredBatch,
    version: int,
    advantage: AdvantageConfig,
    kl: KlSection,
    beta: float,
    known: Tensor | None = None,
    rewards: Mapping[str, RewardConfig] | None = None,
) -> tuple[PreparedBatch, dict[str, float]]:
    """Advantages and ages of rows of a step that trains weights ``version``, and metrics.

    Every rank sees all rows of the step (they are small), so the whitening is exact over the global batch without a
    collective. When only some of the step's rows are there, ``known`` gives the moments to whiten by [3]. The KL reward is
    measured under the engine's log-probs: those of the distribution that was sampled. ``rewards`` are the recipe's, whose scores
    the rows hold; weighted, they join the KL reward of the last token.
    """
    lengths = scored.response_ids.lengths
    q_bt, _ = to_padded(scored.values.flat, lengths + 1)
    mu_bt, mask_bt = to_padded(scored.log_probs.flat, lengths)
    ref_bt, _ = to_padded(scored.ref_log_probs.flat, lengths)
    k_bt = kl_rewards(mu_bt, ref_bt, beta if kl.placement == "reward" else 0.0) * mask_bt
    scores_bc = scored.rewards.flat.reshape(len(scored), -1)
    weights_c = np.array([config.weight for config in (rewards or {}).values()], dtype=np.float32)
    rows = torch.arange(len(scored))
    k_bt[rows, torch.from_numpy(lengths).long() - 1] += torch.from_numpy(scores_bc @ weights_c)
    raw_bt = advantages(advantage, Signals(q_bt, k_bt, mask_bt, torch.from_numpy(scored.groups())))
    sums = moments(raw_bt, mask_bt)
    white_bt = whiten(raw_bt, mask_bt, sums if known is None else known, advantage.whitening)
    flat = to_flat(white_bt, mask_bt).numpy()
    log_ratio_bt = (mu_bt - ref_bt) * mask_bt
    raw = to_flat(raw_bt, mask_bt)
    value_rows = scored.values.rows()
    cut = sum(reason == "length" for reason in scored.finish_reasons) / len(scored)
    metrics = {
        "value/mean": float(to_flat(q_bt[:, 1:], mask_bt).mean()),
        "value/last": float(np.mean([row[-1] for row in value_rows])),
        "value/prompt": float(np.mean([row[0] for row in value_rows])),
        "advantage/mean": float(raw.mean()),
        "advantage/std": float(raw.std(unbiased=False)),
        "kl/per_token": float(log_ratio_bt.sum() / mask_bt.sum()),
        "kl/per_answer": float(log_ratio_bt.sum(1).mean()),
        "kl/beta": beta,
        "answer/tokens": float(lengths.mean()),
        "answer/total_tokens": float(lengths.sum()),
        "answer/cut_share": cut,
    } | {f"reward/{name}": float(column.mean()) for name, column in zip(rewards or {}, scores_bc.T, strict=True)}
    return PreparedBatch(scored, Ragged(flat, lengths), ages(scored, version), sums), metrics


def mini_batch_rows(rows: int, mini_batches: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """A random split of row indices into equal mini-batches; the same on every rank for the same seed.

    There are fewer mini-batches when there are fewer rows, because some were dropped.
    """
    order = np.arange(rows) if mini_batches == 1 else np.random.default_rng(seed).permutation(rows)
    return np.array_split(order, min(mini_batches, rows))


@dataclass(frozen=True)
class TokenBatch:
    """Per-token inputs of the loss for N response tokens, in the row order of a micro-batch."""

    engine_log_probs: Tensor
    ref_log_probs: Tensor
    advantages: Tensor
    ages: Tensor
    old_log_probs: Tensor | None

    @classmethod
    def of(cls, prepared: PreparedBatch, rows: list[int], old: Ragged | None, device: torch.device | str) -> TokenBatch:
        """Gather the tokens of ``rows``; ``old`` are the learner's own log-probs when they were computed beforehand."""

        def flat(ragged: Ragged) -> Tensor:
            return torch.from_numpy(ragged.take(rows).flat).float().to(device)

        return cls(
            flat(prepared.scored.log_probs),
            flat(prepared.scored.ref_log_probs),
            flat(prepared.advantages),
            flat(prepared.ages),
            None if old is None else flat(old),
        )


def loss(
    log_probs: Tensor,
    entropy: Tensor,
    tokens: TokenBatch,
    ppo: PpoUpdateSection,
    kl: KlSection,
    off_policy: OffPolicySection,
    beta: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss summed over N tokens, and sums for metrics (each a scalar tensor, to be divided by the token count).

    ``tokens.old_log_probs`` None means that this is the first and only pass: the old policy is the current one, detached.
    """
    current = log_probs.detach()
    old = tokens.engine_log_probs if ppo.old_log_probs == "engine" else tokens.old_log_probs
    if old is None:
        old = current
    weights = token_weights(old, tokens.engine_log_probs, tokens.ages, off_policy)
    total, clipped = clipped_policy_loss(log_probs, old, tokens.advantages, ppo.clip_range, weights)
    if kl.placement == "loss":
        penalty = kl_k3(log_probs, tokens.ref_log_probs)
        total = total + beta * (penalty if weights is None else penalty * (weights > 0)).sum()
    gap = current - tokens.engine_log_probs
    sums = {
        "loss/policy": total.detach(),
        "ppo/clip_share": clipped.float().sum(),
        "ppo/approx_kl": kl_k3(old, current).sum(),
        "policy/entropy": entropy.sum(),
        "gap/abs_log_prob": gap.abs().sum(),
        "gap/kl_k3": (torch.expm1(gap) - gap).sum(),
        "staleness/weight": torch.ones_like(current).sum() if weights is None else weights.sum(),
        "kl/learner_per_token": (current - tokens.ref_log_probs).sum(),
    }
    return total, sums


def mean_metrics(sums: Mapping[str, float], tokens: float) -> dict[str, float]:
    """Token sums to token means."""
    return {name: value / tokens for name, value in sums.items()}
