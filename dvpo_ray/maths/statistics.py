"""Intervals and aggregates for evaluation, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

AGGREGATES = ("mean", "last", "p01", "p05", "p10", "p90", "p95", "p99")


def aggregate_values(values: np.ndarray, how: str) -> float:
    """One score of an answer from its token values q_1..q_T: the mean, the last, or a percentile (``p05`` = 5th)."""
    if values.size == 0:
        raise ValueError("an answer without tokens has no score")
    if how == "mean":
        return float(values.mean())
    if how == "last":
        return float(values[-1])
    return float(np.percentile(values, int(how[1:])))


def bootstrap_ci95(
    samples: Sequence[float], groups: Sequence[str] | None = None, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean; with ``groups``, whole groups are resampled (samples of one prompt
    are not independent)."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no samples")
    names = np.arange(values.size) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(names, weights=values)
    counts = np.bincount(names)
    picks = np.random.default_rng(seed).integers(0, sums.size, size=(draws, sums.size))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def wins(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """1 for each score that beats its counterpart among ``others``, 0.5 for a tie, 0 otherwise."""
    a, b = np.asarray(scores), np.asarray(others)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"need equally many scores, at least one; got {a.shape} and {b.shape}")
    return ((a > b) + 0.5 * (a == b)).tolist()


def win_rate(after: Sequence[float], before: Sequence[float]) -> float:
    """Share of answers whose score beats its counterpart's; ties count half."""
    return float(np.mean(wins(after, before)))


def best_of_n(scores: Sequence[float], measured: Sequence[float], n: int) -> float:
    """Expected ``measured`` of the answer that has the highest score among ``n``, from N >= n answers to the same prompt.

    The mean over all C(N, n) subsets, which is unbiased for n answers sampled anew: the i-th smallest score (i from 1) is the
    highest of C(i - 1, n - 1) subsets. Answers of equal score are equally likely to be taken.
    """
    keys, values = np.asarray(scores, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if keys.shape != values.shape or not 1 <= n <= keys.size:
        raise ValueError(f"need as many scores as measurements, and at least n = {n}; got {keys.shape} and {values.shape}")
    subsets = math.comb(keys.size, n)
    shares = np.array([math.comb(i, n - 1) / subsets for i in range(keys.size)])
    rank = np.searchsorted(np.sort(keys), keys, side="left")
    sizes = np.bincount(rank, minlength=keys.size)
    taken = [shares[first : first + sizes[first]].sum() / sizes[first] for first in rank]
    return float(np.dot(taken, values))
