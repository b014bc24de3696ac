"""Scores are kept by sequence and seal, within a limit."""

from __future__ import annotations

import numpy as np

from dvpo_ray.learning.score_cache import ENTRY_BYTES, Entry, ScoreCache
from dvpo_ray.types import Trajectory
from tests.support.fakes import row


def answer(prompt: list[int], response: list[int]) -> Trajectory:
    ids = np.array(response, dtype=np.int32)
    return Trajectory(
        row("r"), np.array(prompt, dtype=np.int32), ids, np.zeros(ids.size, np.float32), np.zeros(ids.size, np.int32), "stop"
    )


def scores(length: int, value: float) -> Entry:
    values, ref_log_probs = np.full(length + 1, value, np.float32), np.full(length, -value, np.float32)
    return values, ref_log_probs, np.zeros(1, np.float32)


def test_a_key_is_of_the_sequence_where_the_prompt_ends_and_the_seal() -> None:
    cache = ScoreCache(10_000, "seal")
    keys = {
        cache.key(answer([1, 2], [3])),
        cache.key(answer([1], [2, 3])),
        cache.key(answer([1, 2], [4])),
        ScoreCache(10_000, "other").key(answer([1, 2], [3])),
    }
    assert len(keys) == 4
    assert cache.key(answer([1, 2], [3])) in keys


def test_what_was_put_is_found_and_the_longest_unused_goes_first() -> None:
    room = 3 * (ENTRY_BYTES + 4 * (3 + 2 + 1))
    cache = ScoreCache(room, "seal")
    keys = [cache.key(answer([1], [i, i])) for i in range(4)]
    for i in range(3):
        cache.put(keys[i], scores(2, float(i)))
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], scores(2, 3.0))
    assert cache.get(keys[1]) is None
    found = cache.get(keys[0])
    assert found is not None and found[0].tolist() == [0.0] * 3
    assert cache.hits == 2


def test_what_does_not_fit_is_not_kept() -> None:
    cache = ScoreCache(0, "seal")
    key = cache.key(answer([1], [2]))
    cache.put(key, scores(1, 1.0))
    assert cache.get(key) is None
