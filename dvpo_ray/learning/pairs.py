"""Preference pairs, and answers in none, as trainers take them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dvpo_ray.data import EncodedAnswer, EncodedPair, Preference


@dataclass(frozen=True)
class LabelledAnswer:
    """Prompt and answer token ids, and the answer's label: +1 or -1 for the halves of a pair, in between for others."""

    prompt_ids: np.ndarray
    response_ids: np.ndarray
    label: float

    @property
    def tokens(self) -> int:
        """Length of prompt and answer."""
        return self.prompt_ids.size + self.response_ids.size


Pair = tuple[LabelledAnswer, LabelledAnswer]
# A pair, or an answer that is in none.
Unit = Pair | tuple[LabelledAnswer]


def labelled(pair: EncodedPair) -> Pair:
    """Both answers of a pair with their labels."""
    prompt = _ids(pair.prompt_ids)
    return LabelledAnswer(prompt, _ids(pair.chosen_ids), 1.0), LabelledAnswer(prompt, _ids(pair.rejected_ids), -1.0)


def unit(row: Preference) -> Unit:
    """Both answers of a pair, or the one answer that is in none, with their labels."""
    if isinstance(row, EncodedAnswer):
        return (LabelledAnswer(_ids(row.prompt_ids), _ids(row.answer_ids), row.label),)
    return labelled(row)


def batches(rows: int, size: int, epochs: int, seed: int) -> list[np.ndarray]:
    """Indices of the rows of every step: every row once an epoch, in an order of its own for each."""
    found: list[np.ndarray] = []
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(rows)
        found += [order[first : first + size] for first in range(0, rows, size)]
    return found


def _ids(tokens: tuple[int, ...]) -> np.ndarray:
    return np.asarray(tokens, dtype=np.int32)
