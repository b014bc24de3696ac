"""The verdicts of an evaluation: what is paid for is never asked again."""

from __future__ import annotations

from pathlib import Path

from dvpo_ray.judging.kept_lines import Journal, Kept
from dvpo_ray.judging.verdicts import Verdict

REMEDY = "copy the file again from where it was whole, or give --verdicts a file of its own"


class Judgement(Kept):
    """One reply of the judge; its key is ``Request.identity``, ``verdict`` is None when none could be read."""

    question: str
    verdict: Verdict | None
    reply: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    max_tokens: int

    def settled(self, max_tokens: int) -> bool:
        """Whether a reply of at most so many tokens would say no more."""
        return self.verdict is not None or self.finish_reason != "length" or self.max_tokens >= max_tokens


class VerdictFile(Journal[Judgement]):
    """Verdicts by key."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a line that is no verdict."""
        super().__init__(path, Judgement, REMEDY)
