"""The row formats people have, turned into one: prompt messages, and answers as text.

Pairs: ``prompt/chosen/rejected`` as strings or conversations, conversations with an implicit prompt, HH-RLHF transcripts.
Demonstrations: a prompt and its ``completion``, or a pair, whose chosen answer is taken.
Prompts: ``prompt`` as string or conversation, ``question``, or MT-Bench's ``turns`` (its first turn).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvpo_ray.data.reasons import BadRow, Reason

ID_FIELDS = ("id", "row_id", "prompt_id", "question_id")
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


Messages = tuple[Message, ...]


def row_id(row: Mapping[str, Any], fallback: str) -> str:
    """The row's own id, else ``fallback``.

    Raises:
        BadRow: the id is a list or an object.
    """
    for name in ID_FIELDS:
        found = row.get(name)
        if isinstance(found, Mapping | list | tuple):
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' is a {type(found).__name__}, expected text or a number")
        if found is not None:
            return str(found)
    return fallback


def row_group(row: Mapping[str, Any]) -> str | None:
    """What a row has in common with others, such as the subject of its prompt (``group``); None when it does not say.

    Raises:
        BadRow: it is a list or an object.
    """
    found = row.get("group")
    if isinstance(found, Mapping | list | tuple):
        raise BadRow(Reason.WRONG_TYPE, f"'group' is a {type(found).__name__}, expected text or a number")
    return None if found is None else str(found)


def parse_pair(row: Mapping[str, Any]) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected answer of a preference row.

    Raises:
        BadRow: with the reason.
    """
    chosen, rejected = _field(row, "chosen"), _field(row, "rejected")
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"])
        answers = _answer(chosen, prompt), _answer(rejected, prompt)
    elif isinstance(chosen, str) and isinstance(rejected, str):
        prompt, *texts = _split_common(_transcript(chosen, "chosen"), _transcript(rejected, "rejected"))
        answers = texts[0], texts[1]
    else:
        prompt, *texts = _split_common(_conversation(chosen, "chosen"), _conversation(rejected, "rejected"))
        answers = texts[0], texts[1]
    for name, text in zip(("chosen", "rejected"), answers, strict=True):
        if not text.strip():
            raise BadRow(Reason.EMPTY_ANSWER, f"'{name}' is empty")
    if answers[0].strip() == answers[1].strip():
        raise BadRow(Reason.EQUAL_ANSWERS, "'chosen' and 'rejected' are the same")
    return prompt, answers[0].strip(), answers[1].strip()


def parse_demonstration(row: Mapping[str, Any]) -> tuple[Messages, str]:
    """Prompt and good answer of a row: its ``completion``, or the chosen answer of a preference row.

    Raises:
        BadRow: with the reason.
    """
    if row.get("completion") is None:
        if row.get("chosen") is None:
            raise BadRow(Reason.MISSING_FIELD, "neither 'completion' nor 'chosen'")
        prompt, answer, _ = parse_pair(row)
        return prompt, answer
    prompt = parse_prompt(row)
    answer = _answer(row["completion"], prompt).strip()
    if not answer:
        raise BadRow(Reason.EMPTY_ANSWER, "'completion' is empty")
    return prompt, answer


def parse_prompt(row: Mapping[str, Any]) -> Messages:
    """The prompt of a row.

    Raises:
        BadRow: with the reason.
    """
    if row.get("prompt") is not None:
        return _prompt(row["prompt"])
    if row.get("question") is not None:
        return _prompt(row["question"])
    turns = row.get("turns")
    if isinstance(turns, Sequence) and not isinstance(turns, str) and turns:
        return _prompt(turns[0])
    raise BadRow(Reason.MISSING_FIELD, "none of 'prompt', 'question', 'turns'")


def _field(row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise BadRow(Reason.MISSING_FIELD, f"'{name}' is missing")
    return row[name]


def _prompt(value: Any) -> Messages:
    if isinstance(value, str):
        messages: Messages = (Message("user", value),)
    else:
        messages = _conversation(value, "prompt")
    if not messages or not messages[-1].content.strip():
        raise BadRow(Reason.EMPTY_PROMPT, "the prompt is empty")
    if messages[-1].role == "assistant":
        raise BadRow(Reason.WRONG_TYPE, "the prompt ends with an assistant turn")
    return messages


def _conversation(value: Any, name: str) -> Messages:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' is a {type(value).__name__}, expected a string or a list of role and content")
    messages = []
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' has a turn without string 'role' and 'content'")
        messages.append(Message(turn["role"], turn["content"]))
    return tuple(messages)


def _answer(value: Any, prompt: Messages) -> str:
    """Text of an answer given beside its prompt: a string, its assistant turn, or prompt and assistant turn together."""
    if isinstance(value, str):
        return value
    turns = _conversation(value, "answer")
    if len(turns) > 1 and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow(Reason.WRONG_TYPE, "an answer beside 'prompt' must be one assistant turn")
    return turns[0].content


def _transcript(text: str, name: str) -> Messages:
    """Turns of an HH-RLHF transcript, "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    parts = TURN.split(text if text.startswith("\n\n") else "\n\n" + text)
    if len(parts) < 5 or parts[0].strip():
        raise BadRow(Reason.MISSING_FIELD, f"no 'prompt', and '{name}' is no transcript of Human and Assistant turns")
    return tuple(Message(ROLES[role], content.strip()) for role, content in zip(parts[1::2], parts[2::2], strict=True))


def _split_common(chosen: Messages, rejected: Messages) -> tuple[Messages, str, str]:
    """Common prompt and the two answers: the first turns that differ, which must be assistant turns.

    Some transcripts part before their last turn; what follows the first differing answers is not comparable and left out.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise BadRow(Reason.EQUAL_ANSWERS, "'chosen' and 'rejected' are the same conversation")
    if shared == 0 or shared >= min(len(chosen), len(rejected)):
        raise BadRow(Reason.BAD_TRANSCRIPT, "the conversations have no common beginning, or one is the beginning of the other")
    if {chosen[shared].role, rejected[shared].role} != {"assistant"}:
        raise BadRow(Reason.BAD_TRANSCRIPT, f"the conversations part at turn {shared + 1}, which is not the assistant's")
    prompt = chosen[:shared]
    if not prompt[-1].content.strip():
        raise BadRow(Reason.EMPTY_PROMPT, "the last turn before the answers is empty")
    return prompt, chosen[shared].content, rejected[shared].content
