"""Intervals and aggregates for evaluation, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# The normal distribution's 97.5% point.
Z95 = 1.959964
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
    """95% percentile bootstrap interval of the mean; with ``groups``, whole groups are resampled (samples of one prompt, or of
    prompts on one subject, are not independent)."""
    values, names = _grouped(samples, groups)
    sums = np.bincount(names, weights=values)
    counts = np.bincount(names)
    picks = np.random.default_rng(seed).integers(0, sums.size, size=(draws, sums.size))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def share_ci95(samples: Sequence[float], groups: Sequence[str] | None = None) -> tuple[float, float]:
    """95% interval of a share: of the mean of samples from 0 to 1, by Wilson (1927). It is no point at 0 and at 1 either.

    It holds all shares q that p is no surprise for: |p - q| <= 1.96 sqrt(q (1 - q) / m). Independent samples are m = n. With
    ``groups`` they are m = n / d, for d times the variance of independent ones (``_design_effect``). Samples between 0 and 1,
    such as ties, vary less than 0 and 1 of the same mean, so for them it is on the wide side.
    """
    values, names = _grouped(samples, groups)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"a share is the mean of numbers from 0 to 1; got {values.min()} to {values.max()}")
    share, m = float(values.mean()), values.size / _design_effect(values, names)
    middle = (share + Z95**2 / (2 * m)) / (1 + Z95**2 / m)
    half = Z95 / (1 + Z95**2 / m) * math.sqrt(share * (1 - share) / m + Z95**2 / (4 * m**2))
    # At 0 and 1 one end is the share itself, which rounding must not cross.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def mean_ci95(samples: Sequence[float], groups: Sequence[str] | None = None) -> tuple[float, float]:
    """95% interval of a mean of any numbers: where all are 0 or 1 ``share_ci95``, else ``bootstrap_ci95``."""
    return (share_ci95 if set(samples) <= {0, 1} else bootstrap_ci95)(samples, groups)


def _grouped(samples: Sequence[float], groups: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """The samples, and the number of each one's group, from 0 on; without groups each is one."""
    values = np.asarray(samples, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no samples")
    return values, np.arange(values.size) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]


def _design_effect(values: np.ndarray, names: np.ndarray) -> float:
    """Variance of a share of grouped samples, over that of independent ones with the same share (Kish 1965).

    Estimated between groups, G / (G - 1) sum_g (sum of g - n_g p)^2 / n^2, with two groups of mean size added: one of 1 and one
    of 0 alone. They keep it from 0 / 0 where all samples are alike, when nothing speaks for independence, and weigh little
    otherwise. It is held between 1 and the value at which samples of a group are all alike, sum_g n_g^2 / n.
    """
    counts = np.bincount(names)
    size = values.size / counts.size
    sums = np.append(np.bincount(names, weights=values), [size, 0.0])
    sizes = np.append(counts, [size, size])
    share, total = sums.sum() / sizes.sum(), sizes.sum()
    between = sizes.size / (sizes.size - 1) * ((sums - sizes * share) ** 2).sum() / total**2
    alike = float((counts**2).sum() / values.size)
    return float(np.clip(between / (share * (1 - share) / total), 1.0, alike))


def win_indicators(scores: Sequence[float], others: Sequence[float]) -> list[float]:
    """1 for each score that beats its counterpart among ``others``, 0.5 for a tie, 0 otherwise."""
    a, b = np.asarray(scores), np.asarray(others)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"need equally many scores, at least one; got {a.shape} and {b.shape}")
    return ((a > b) + 0.5 * (a == b)).tolist()


def win_rate(after: Sequence[float], before: Sequence[float]) -> float:
    """Share of answers whose score beats its counterpart's; ties count half."""
    return float(np.mean(win_indicators(after, before)))


def concordance(scores: Sequence[float], labels: Sequence[float]) -> float:
    """Share of couples of different ``labels`` whose order is also that of their ``scores``; equal scores count half.

    Of two labels it is the area under the ROC curve (Hanley and McNeil 1982), of more Harrell's index C.
    """
    a, b = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if a.shape != b.shape or np.unique(b).size < 2:
        raise ValueError(f"need as many scores as labels, and at least two labels; got {a.shape} and {b.shape}")
    right = couples = 0.0
    for label in np.unique(b):
        these, lower = a[b == label], np.sort(a[b < label])
        right += 0.5 * sum(float(np.searchsorted(lower, these, side).sum()) for side in ("left", "right"))
        couples += these.size * lower.size
    return right / couples


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
