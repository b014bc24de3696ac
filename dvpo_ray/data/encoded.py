"""Rows as token ids: what trainings take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids. ``prompt_text`` is its last turn, for people; ``prompt_key`` identifies the whole prompt.

    ``group`` is what it has in common with others, such as its subject, where its row says so. ``columns`` are what else the row
    holds, for rewards and environments.
    """

    row_id: str
    prompt_text: str
    prompt_ids: tuple[int, ...]
    prompt_key: str
    group: str | None = field(default=None, kw_only=True)
    columns: Mapping[str, Any] = field(default_factory=dict, kw_only=True, compare=False)

    @property
    def kin(self) -> str:
        """What it shares with prompts that it is not independent of: its group, or without one the prompt itself."""
        return self.prompt_key if self.group is None else self.group


@dataclass(frozen=True)
class EncodedPair(EncodedPrompt):
    """A preference pair as token ids; answers end with the token that ends the model's turns unless they were truncated."""

    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


@dataclass(frozen=True)
class EncodedAnswer(EncodedPrompt):
    """An answer that is in no pair, as token ids; it ends as those of pairs do.

    ``label`` says how good it is, from -1 to 1. Example: 1.0 for one that was called good, 0.0 for each answer of a tie.
    """

    answer_ids: tuple[int, ...]
    label: float

    def __post_init__(self) -> None:
        assert -1 <= self.label <= 1, f"row {self.row_id}: the label {self.label} is not in [-1, 1]"


@dataclass(frozen=True)
class EncodedDemonstration(EncodedPrompt):
    """A prompt and a good answer to it as token ids; the answer ends as those of pairs do."""

    answer_ids: tuple[int, ...]


Preference = EncodedPair | EncodedAnswer
