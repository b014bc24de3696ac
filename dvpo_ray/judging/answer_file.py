"""Answers to a benchmark until all are there: a command that was ended goes on after the last of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dvpo_ray.judging.kept_lines import Journal, Kept
from dvpo_ray.types import RolloutRequest


class SavedAnswer(Kept):
    """One answer: its text, its length in tokens, and whether the limit cut it."""

    text: str
    tokens: int
    cut: bool


class AnswerFile(Journal[SavedAnswer]):
    """Answers by the hash of what was asked, of which weights, and how it was sampled."""

    def __init__(self, path: Path, identity: Any) -> None:
        """``identity`` is JSON that says which weights answer and how; raises DataError for a line that is no answer."""
        super().__init__(path, SavedAnswer, "remove the file, and all is asked again")
        self._identity = identity

    def key(self, request: RolloutRequest) -> str:
        """What a request is known by; its row's id does not matter."""
        asked = json.dumps([self._identity, list(map(int, request.prompt_ids)), request.seed], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def find(self, request: RolloutRequest) -> SavedAnswer | None:
        """The answer to a request, if it is there."""
        return self.known.get(self.key(request))
