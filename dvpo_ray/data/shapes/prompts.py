"""The prompt of a row, wherever it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dvpo_ray.data.messages import Message, Messages, answer_of, conversation, prompt_of, text_of
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes.base import PROMPTS, TALKS, Answer, Prompted, Row, first_of, has


def read_prompt(row: Row) -> Messages:
    """The prompt of a row, from the first column that can hold one, with what stands beside it.

    Raises:
        BadRow: with the reason.
    """
    for name in ("prompt", "question"):
        if row.get(name) is not None:
            return prompt_of(_question(row[name]), name, row.get("system"))
    if has(row, "instruction"):
        return _alpaca_prompt(row)
    turns = row.get("turns")
    if isinstance(turns, Sequence) and not isinstance(turns, str) and turns:
        return prompt_of(turns[0], "turns", row.get("system"))
    for name in TALKS:
        if row.get(name) is not None:
            return without_answer(conversation(row[name], name), name, row.get("system"))
    found = first_of(row, PROMPTS)
    if found is None:
        raise BadRow(
            Reason.MISSING_FIELD, f"none of {', '.join(map(repr, ('prompt', 'question', 'turns', *TALKS, *PROMPTS[3:])))}"
        )
    return prompt_of(row[found], found, row.get("system"))


def _question(value: Any) -> Any:
    """WebGPT's questions are objects, Arena's prompts are JSON lists of what the user said."""
    if isinstance(value, Mapping) and isinstance(value.get("full_text"), str):
        return value["full_text"]
    return value


def without_answer(messages: Messages, name: str, system: Any = None) -> Messages:
    while messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return prompt_of([m.turn for m in messages], name, system)


def _alpaca_prompt(row: Row) -> Messages:
    text = text_of(row["instruction"], "instruction")
    extra = row.get("input")
    if isinstance(extra, str) and extra.strip():
        text = f"{text}\n\n{extra}"
    turns = [Message("user", text)]
    for said in reversed(row.get("history") or ()):
        if not isinstance(said, Sequence) or isinstance(said, str) or len(said) != 2:
            raise BadRow(Reason.WRONG_TYPE, "'history' is no list of questions with their answers")
        turns[:0] = [Message("user", text_of(said[0], "history")), Message("assistant", text_of(said[1], "history"))]
    return prompt_of([m.turn for m in turns], "instruction", row.get("system"))


def has_prompt(row: Row) -> bool:
    return first_of(row, (*PROMPTS, "turns", *TALKS)) is not None


def better_and_worse(prompt: Messages, better: Any, worse: Any, names: tuple[str, str] = ("chosen", "rejected")) -> Prompted:
    texts = [answer_of(value, prompt, name) for value, name in zip((better, worse), names, strict=True)]
    return Prompted(prompt, (Answer(texts[0], 1.0), Answer(texts[1], 0.0)))


def compared(prompt: Messages, first: Any, second: Any, names: tuple[str, str], lead: float) -> Prompted:
    """Two answers, of which the first is better by ``lead``; a tie has none better."""
    texts = [answer_of(value, prompt, name) for value, name in zip((first, second), names, strict=True)]
    return Prompted(prompt, (Answer(texts[0], lead), Answer(texts[1], 0.0)))
