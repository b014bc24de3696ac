"""Seeds of answers: one for each place in a run, none a neighbour's."""

from __future__ import annotations

import hashlib
from typing import Literal


def sampling_seed(run_seed: int, what: Literal["train", "evaluate", "ask", "reset", "turn"], *place: int) -> int:
    """The seed of one answer, below 2^63: the first bits of a hash over all that tells it from others.

    Sums of multiples give different places the same number as soon as a place grows past the multiple. A hash keeps apart what
    differs anywhere: among a million answers two share a seed with a probability of 5e-8. Engines take seeds of 64 bits; torch's
    generator for CPUs uses the lowest 32 of them, which are as well mixed: 1e-7 for the 32 answers of a step.

    Args:
        run_seed: of the recipe.
        what: the answer is for; held-out answers share no seed with those trained on.
        place: numbers that tell an answer from all others of its kind, such as prompt and answer.
    """
    digest = hashlib.sha256(repr((run_seed, what, *place)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
