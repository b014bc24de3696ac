"""Splits by prompt, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from dvpo_ray.data.encoded import EncodedAnswer, EncodedPrompt
from dvpo_ray.errors import DataError

P = TypeVar("P", bound=EncodedPrompt)


def split_by_prompt(rows: Sequence[P], share: float, seed: int) -> tuple[list[P], list[P]]:
    """(rest, held out): rows of one prompt stay together; the choice depends on prompt and seed alone, not on order."""
    held = {row.prompt_key for row in rows if _unit_interval(row.prompt_key, seed) < share}
    rest = [row for row in rows if row.prompt_key not in held]
    held_out = [row for row in rows if row.prompt_key in held]
    if not rest or not held_out:
        raise DataError(f"{len(rows)} rows are too few to hold out {share:.0%} of their prompts; give a validation source")
    return rest, held_out


def disjoint(trained_on: Sequence[EncodedPrompt], held_out: Sequence[EncodedPrompt]) -> None:
    """Refuse a held-out set that shares prompts with the training set.

    Raises:
        DataError: naming up to three shared prompts.
    """
    keys = {row.prompt_key for row in trained_on}
    shared = [row.prompt_text for row in held_out if row.prompt_key in keys]
    if shared:
        examples = "; ".join(repr(text[:80]) for text in shared[:3])
        raise DataError(f"{len(shared)} held-out rows have a prompt that is trained on, for example {examples}; remove them")


def fingerprint(rows: Sequence[EncodedPrompt]) -> str:
    """sha256 over ids, prompts, answers and labels of all rows, of whatever kind, in their order.

    Not over a prompt's tokens: there are chat templates that write today's date into them.
    """
    digest = hashlib.sha256()
    for row in rows:
        said = [found for name, found in vars(row).items() if name.endswith("_ids") and name != "prompt_ids"]
        said += [row.label] if isinstance(row, EncodedAnswer) else []
        digest.update(repr((row.row_id, row.prompt_key, *said)).encode())
    return digest.hexdigest()


def _unit_interval(key: str, seed: int) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64
