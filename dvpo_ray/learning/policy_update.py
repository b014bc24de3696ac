"""One step of policy learning on scored rows: advantages, mini-batches and the clipped loss.

This file knows nothing of processes. A learner rank calls ``prepare`` once per step, ``mini_batch_units`` once per
inner epoch and ``loss`` once per micro-batch; sums over ranks are its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dvpo_ray.algorithms import LossTerms, make_algorithm
from dvpo_ray.config.algorithms import AlgorithmSettings
from dvpo_ray.config.environments import ENVIRONMENT_REWARD, FAILED_EPISODES
from dvpo_ray.config.kl import KlSection
from dvpo_ray.config.rewards import RewardSettings
from dvpo_ray.config.updates import OffPolicySection, PpoUpdateSection
from dvpo_ray.learning.batching import to_flat, to_padded
from dvpo_ray.learning.staleness import ages, token_weights
from dvpo_ray.learning.token_rewards import token_rewards
from dvpo_ray.maths.advantages import partners
from dvpo_ray.maths.losses import kl_k3, kl_k3_loss
from dvpo_ray.maths.masked import moments, whiten
from dvpo_ray.maths.running import RunningMoments
from dvpo_ray.types import Ragged, ScoredBatch

NO_REWARDS = RunningMoments()


@dataclass(frozen=True)
class PreparedBatch:
    """Scored rows with the whitened advantages and the ages of the tokens that the policy wrote (ragged, N_i per row).

    ``moments`` [3] are those of the advantages before whitening (``dvpo_ray.maths.masked.moments``), ``running`` those of all
    scores of whole answers so far, where they are normalised.
    """

    scored: ScoredBatch
    advantages: Ragged
    ages: Ragged
    moments: Tensor
    running: RunningMoments


def prepare(
    scored: ScoredBatch,
    version: int,
    advantage: AlgorithmSettings,
    kl: KlSection,
    beta: float,
    known: Tensor | None = None,
    rewards: Mapping[str, RewardSettings] | None = None,
    running: RunningMoments = NO_REWARDS,
) -> tuple[PreparedBatch, dict[str, float]]:
    """Advantages and ages of rows of a step that trains weights ``version``, and metrics.

    Every rank sees all rows of the step (they are small), so the whitening is exact over the global batch without a
    collective. When only some of the step's rows are there, ``known`` gives the moments to whiten by [3]. ``rewards`` are the
    recipe's, whose scores the rows hold, ``running`` the moments of scores of earlier steps (``token_rewards``).
    """
    earned = token_rewards(scored, advantage, kl, beta, rewards or {}, running)
    actions = scored.actions
    lengths = actions.lengths
    q_bt, _ = to_padded(actions.values.flat, lengths + 1)
    mask_bt = earned.mask_bt
    raw_bt = make_algorithm(advantage).advantages(earned.signals(q_bt, torch.from_numpy(scored.group_ids)))
    sums = moments(raw_bt, mask_bt)
    white_bt = whiten(raw_bt, mask_bt, sums if known is None else known, advantage.whitening)
    flat = to_flat(white_bt, mask_bt).numpy()
    raw = to_flat(raw_bt, mask_bt)
    value_rows = actions.values.rows()
    cut = sum(state == "length" for state in scored.end_states) / len(scored)
    metrics = {
        "value/mean": float(to_flat(q_bt[:, 1:], mask_bt).mean()),
        "value/last": float(np.mean([row[-1] for row in value_rows])),
        "value/prompt": float(np.mean([row[0] for row in value_rows])),
        "advantage/mean": float(raw.mean()),
        "advantage/std": float(raw.std(unbiased=False)),
        "answer/tokens": float(lengths.mean()),
        "answer/total_tokens": float(lengths.sum()),
        "answer/cut_share": cut,
    } | earned.metrics
    if ENVIRONMENT_REWARD in scored.channels:
        failed = sum(state in FAILED_EPISODES for state in scored.end_states)
        metrics["environment/failed_share"] = failed / len(scored)
    return PreparedBatch(scored, Ragged(flat, lengths), ages(scored, version), sums, earned.moments), metrics


def units(scored: ScoredBatch, advantage: AlgorithmSettings) -> list[list[int]]:
    """Row indices that must be in one micro-batch: the pairs whose ratio is clipped together, else every row by itself."""
    if not advantage.keeps_pairs:
        return [[row] for row in range(len(scored))]
    partner = partners(torch.from_numpy(scored.group_ids)).tolist()
    # A row without a partner has no advantage; beside itself its ratio is 1, and it gives no gradient.
    return [[row, other] for row, other in enumerate(partner) if row <= other]


def mini_batch_units(units: int, mini_batches: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """A random split of indices into equal mini-batches; the same on every rank for the same seed.

    There are fewer mini-batches when there are fewer units, because some rows were dropped.
    """
    order = np.arange(units) if mini_batches == 1 else np.random.default_rng(seed).permutation(units)
    return np.array_split(order, min(mini_batches, units))


@dataclass(frozen=True)
class TokenBatch:
    """Per-token inputs of the loss for N response tokens, in the row order of a micro-batch, and its rows' ``lengths``."""

    engine_log_probs: Tensor
    ref_log_probs: Tensor
    advantages: Tensor
    ages: Tensor
    old_log_probs: Tensor | None
    lengths: Tensor

    @classmethod
    def of(cls, prepared: PreparedBatch, rows: list[int], old: Ragged | None, device: torch.device | str) -> TokenBatch:
        """Gather the tokens of ``rows``; ``old`` are the learner's own log-probs when they were computed beforehand."""

        def flat(ragged: Ragged) -> Tensor:
            return torch.from_numpy(ragged.take(rows).flat).float().to(device)

        return cls(
            flat(prepared.scored.actions.log_probs),
            flat(prepared.scored.actions.ref_log_probs),
            flat(prepared.advantages),
            flat(prepared.ages),
            None if old is None else flat(old),
            torch.from_numpy(prepared.advantages.lengths[rows]).to(device),
        )


def loss(
    log_probs: Tensor,
    entropy: Tensor,
    tokens: TokenBatch,
    advantage: AlgorithmSettings,
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
    terms = LossTerms(log_probs, old, tokens.advantages, tokens.lengths, ppo.clip_range, weights)
    total, clipped = make_algorithm(advantage).loss(terms)
    if kl.placement == "loss":
        penalty = kl_k3_loss(log_probs, tokens.ref_log_probs)
        total = total + beta * (penalty if weights is None else penalty * (weights > 0)).sum()
    gap = current - tokens.engine_log_probs
    sums = {
        "loss/policy": total.detach(),
        "ppo/clip_share": clipped.float().sum(),
        "ppo/approx_kl": kl_k3(old, current).sum(),
        "policy/entropy": entropy.sum(),
        "gap/abs_log_prob": gap.abs().sum(),
        "gap/kl_k3": kl_k3(tokens.engine_log_probs, current).sum(),
        "staleness/weight": torch.ones_like(current).sum() if weights is None else weights.sum(),
        "kl/learner_per_token": (current - tokens.ref_log_probs).sum(),
    }
    return total, sums


# How far the engine's log-probs are from the learner's, before anything was learnt from them.
GAPS = ("gap/abs_log_prob", "gap/kl_k3")


def mean_metrics(sums: Mapping[str, float], tokens: int, loss_terms: int) -> dict[str, float]:
    """Token sums to token means, and the policy's loss to that of its terms; the pretraining loss is a mean already."""
    counts = {"loss/policy": loss_terms, "loss/ptx": 1}
    return {name: value / counts.get(name, tokens) for name, value in sums.items()}
