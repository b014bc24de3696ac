"""Where a chat template writes the beginning of an answer's thinking, or an empty one, before the answer does."""

from __future__ import annotations

import re

THOUGHT = "answers that opened the thinking that the template opens"
UNTHOUGHT = "answers whose empty thinking the template writes itself"
RETHOUGHT = "answers that think where the template has ended the thinking already"
THINK = "<think>"
_OPENED = re.compile(rf"{THINK}\s*(?P<ended></think>)?\s*\Z")
_EMPTY = re.compile(rf"\s*{THINK}\s*</think>\s*")


class Thinking:
    """How prompts end, of a template that writes some of an answer's thinking."""

    def __init__(self, ended: bool) -> None:
        self._ended = ended

    @classmethod
    def of(cls, prompt: str) -> Thinking | None:
        """By the text of a prompt; None when its template writes nothing of the kind."""
        found = _OPENED.search(prompt)
        return None if found is None else cls(found["ended"] is not None)

    def without(self, answer: str) -> tuple[str, str | None]:
        """What an answer says beyond that, and what to count it as (None: it does not begin with thinking).

        Thoughts are never dropped: an answer that has some, after a prompt that has ended them, stays as it is.
        """
        begun = answer.lstrip()
        if not begun.startswith(THINK):
            return answer, None
        if not self._ended:
            return begun.removeprefix(THINK).lstrip("\n"), THOUGHT
        rest = _EMPTY.sub("", begun, count=1) if _EMPTY.match(begun) else None
        return (answer, RETHOUGHT) if rest is None else (rest, UNTHOUGHT)
