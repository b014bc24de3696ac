"""The estimator of the best of n against hand-derived values and against all subsets."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dvpo_ray.maths.statistics import best_of_n


def test_small_cases_by_hand() -> None:
    """Scores 1, 2, 3 of answers worth 10, 0, 30.

    n = 1: the mean, 40 / 3. n = 2: of the pairs {1, 2}, {1, 3}, {2, 3} the best are worth 0, 30, 30: 20. n = 3: 30.
    """
    scores, worth = [1.0, 2.0, 3.0], [10.0, 0.0, 30.0]
    assert [best_of_n(scores, worth, n) for n in (1, 2, 3)] == pytest.approx([40 / 3, 20.0, 30.0])


def test_equal_scores_are_taken_equally_often() -> None:
    """Two answers share the highest score: the best of all three is either, worth (0 + 30) / 2."""
    assert best_of_n([1.0, 2.0, 2.0], [10.0, 0.0, 30.0], 3) == pytest.approx(15.0)
    assert best_of_n([5.0] * 4, [1.0, 2.0, 3.0, 6.0], 2) == pytest.approx(3.0)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_it_is_the_mean_over_all_subsets_in_any_order(n: int) -> None:
    rng = np.random.default_rng(n)
    scores, worth = rng.integers(0, 4, 7).astype(float), rng.normal(size=7)
    best = []
    for subset in map(list, combinations(range(7), n)):
        highest = [i for i in subset if scores[i] == max(scores[subset])]
        best.append(np.mean(worth[highest]))
    order = rng.permutation(7)
    assert best_of_n(list(scores[order]), list(worth[order]), n) == pytest.approx(np.mean(best))


def test_it_is_unbiased() -> None:
    """The best of 2 uniform numbers is 2/3 in the mean, estimated from 4 at a time: standard error about 0.002."""
    draws = np.random.default_rng(0).random((10_000, 4))
    assert np.mean([best_of_n(list(row), list(row), 2) for row in draws]) == pytest.approx(2 / 3, abs=0.008)


@pytest.mark.parametrize(("scores", "n"), [([1.0], 2), ([1.0], 0), ([1.0, 2.0], 1)])
def test_too_few_answers(scores: list[float], n: int) -> None:
    with pytest.raises(ValueError, match="at least n"):
        best_of_n(scores, [1.0], n)
