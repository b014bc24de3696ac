"""Preference pairs as trainers take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dvpo_ray.data import EncodedPair


@dataclass(frozen=True)
class LabelledAnswer:
    """One half of a pair: prompt and answer token ids, its label +1 or -1."""

    prompt_ids: np.ndarray
    response_ids: np.ndarray
    label: float

    @property
    def tokens(self) -> int:
        """Length of prompt and answer."""
        return self.prompt_ids.size + self.response_ids.size


Pair = tuple[LabelledAnswer, LabelledAnswer]


def labelled(pair: EncodedPair) -> Pair:
    """Both answers of a pair with their labels."""
    prompt = np.asarray(pair.prompt_ids, dtype=np.int32)
    return (
        LabelledAnswer(prompt, np.asarray(pair.chosen_ids, dtype=np.int32), 1.0),
        LabelledAnswer(prompt, np.asarray(pair.rejected_ids, dtype=np.int32), -1.0),
    )


def batches(pairs: int, size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """Indices of the pairs of every step: every pair once an epoch, in an order of its own for each."""
    found: list[np.ndarray] = []
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(pairs)
        found += [order[first : first + size] for first in range(0, pairs, size)]
    return found
