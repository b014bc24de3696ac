"""Rows of the pretraining loss of PPO-ptx (Ouyang et al. 2022, arXiv 2203.02155, eq. 2): which ones an optimizer step has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dvpo_ray.data import EncodedDemonstration
from dvpo_ray.types import Ragged


@dataclass(frozen=True)
class Demonstrations:
    """Prompts and good answers to them, token ids, ragged. Flat arrays: the ranks of a machine share one copy."""

    prompt_ids: Ragged
    response_ids: Ragged

    @classmethod
    def of(cls, rows: Sequence[EncodedDemonstration]) -> Demonstrations:
        """From rows as they are read."""
        return cls(Ragged.of([row.prompt_ids for row in rows], np.int32), Ragged.of([row.answer_ids for row in rows], np.int32))

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def draw(self, size: int, seed: int, update: int) -> Demonstrations:
        """``size`` rows for optimizer step ``update`` of a run, the same whenever it is asked for.

        Steps go through all rows one after the other, in an order of its own for each pass, so every row comes once a pass.
        """
        places = np.arange(update * size, (update + 1) * size)
        passes = places // len(self)
        orders = {number: np.random.default_rng((seed, number)).permutation(len(self)) for number in np.unique(passes).tolist()}
        index = [int(orders[number][place]) for number, place in zip(passes.tolist(), places % len(self), strict=True)]
        return Demonstrations(self.prompt_ids.take(index), self.response_ids.take(index))
