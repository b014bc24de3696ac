"""Conversations in the forms that datasets write them, turned into one: a tuple of messages.

Lists of ``role`` and ``content``, one message alone, columns of them, ShareGPT's ``from`` and ``value``, content given as parts,
and HH-RLHF transcripts. What a chat template can use besides (tool calls, names, reasoning) is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dvpo_ray.data.reasons import BadRow, Reason

TURN = re.compile(r"\n\n(Human|Assistant):")
TRANSCRIPT = re.compile(r"\s*Human:")
# Who speaks, by the names that datasets give them.
ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "customer": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "ipython",
}
ROLE_FIELDS, CONTENT_FIELDS = ("role", "from"), ("content", "value", "text")
# What chat templates read of a message besides.
MORE_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; ``more`` is a JSON object of what its template may use besides, or empty."""

    role: str
    content: str
    more: str = ""

    @property
    def turn(self) -> dict[str, Any]:
        """As chat templates take it."""
        return {"role": self.role, "content": self.content} | (json.loads(self.more) if self.more else {})


Messages = tuple[Message, ...]


def conversation(value: Any, name: str) -> Messages:
    """The turns of a conversation in any known form; text is a transcript, or what the user says.

    Raises:
        BadRow: it is none.
    """
    if isinstance(value, str):
        return transcript(value, name) if TRANSCRIPT.match(value) else (Message("user", value),)
    if isinstance(value, Mapping):
        return _of_mapping(value, name)
    if not isinstance(value, Sequence):
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' is a {type(value).__name__}, expected text or a list of role and content")
    return tuple(_message(turn, name) for turn in value)


def _of_mapping(value: Mapping[str, Any], name: str) -> Messages:
    """One message, columns of messages, or what holds them."""
    for inner in ("messages", "conversation", "conversations"):
        if inner in value:
            return conversation(value[inner], f"{name}.{inner}")
    lists = {key: column for key, column in value.items() if isinstance(column, list | tuple)}
    if any(key in lists for key in ROLE_FIELDS):
        sizes = {len(column) for column in lists.values()}
        if len(sizes) != 1:
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' has columns of different lengths")
        (size,) = sizes
        return tuple(_message({key: column[i] for key, column in lists.items()}, name) for i in range(size))
    return (_message(value, name),)


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' has a turn that is a {type(turn).__name__}, expected 'role' and 'content'")
    role = next((turn[field] for field in ROLE_FIELDS if turn.get(field) is not None), None)
    if not isinstance(role, str):
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' has a turn without string 'role' and 'content'")
    more = {field: turn[field] for field in MORE_FIELDS if turn.get(field)}
    content = next((turn[field] for field in CONTENT_FIELDS if turn.get(field) is not None), "" if more else None)
    return Message(ROLES.get(role.lower(), role), text_of(content, name), json.dumps(more, sort_keys=True) if more else "")


def text_of(content: Any, name: str) -> str:
    """The text of a message: a string, or a list of parts of type text.

    Raises:
        BadRow: it is something else, or one of its parts is.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' has a turn without string 'role' and 'content'")
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type", "text") in ("text", None):
            texts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' has a part of kind '{kind}'; only parts of text can be read")
    return "".join(texts)


def transcript(text: str, name: str) -> Messages:
    """Turns of an HH-RLHF transcript, "\\n\\nHuman: ...\\n\\nAssistant: ..."; an answer that is still to come is no turn.

    Raises:
        BadRow: it is none.
    """
    parts = TURN.split("\n\n" + text.lstrip("\n"))
    if len(parts) < 3 or parts[0].strip():
        raise BadRow(Reason.MISSING_FIELD, f"'{name}' is no transcript of Human and Assistant turns")
    turns = [Message(ROLES[who.lower()], said.strip()) for who, said in zip(parts[1::2], parts[2::2], strict=True)]
    if len(turns) > 1 and turns[-1] == Message("assistant", ""):
        turns.pop()
    return tuple(turns)


def prompt_of(value: Any, name: str = "prompt", system: Any = None) -> Messages:
    """A prompt: a conversation that does not end with an answer. ``system`` is a system message beside it.

    Raises:
        BadRow: it is empty, or no prompt.
    """
    messages = conversation(value, name)
    if system is not None:
        text = text_of(system, "system")
        if text.strip() and not (messages and messages[0].role == "system"):
            messages = (Message("system", text), *messages)
    if not messages or not (messages[-1].content.strip() or messages[-1].more):
        raise BadRow(Reason.EMPTY_PROMPT, "the prompt is empty")
    if messages[-1].role == "assistant":
        raise BadRow(Reason.WRONG_TYPE, "the prompt ends with an assistant turn")
    return messages


def answer_of(value: Any, prompt: Messages, name: str) -> str:
    """Text of an answer given beside its prompt: text, its assistant turn, or prompt and assistant turn together.

    White space before it is part of it (code may begin with some), white space after it is not.

    Raises:
        BadRow: it is none, or empty.
    """
    if isinstance(value, str) and not TRANSCRIPT.match(value):
        text = value
    else:
        turns = conversation(value, name)
        for shared in (prompt, tuple(m for m in prompt if m.role != "system")):
            if len(turns) > 1 and turns[: len(shared)] == shared:
                turns = turns[len(shared) :]
        if len(turns) != 1 or turns[0].role != "assistant":
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' beside 'prompt' must be one assistant turn")
        text = _said(turns[0], name)
    return checked_answer(text, name)


def checked_answer(text: str, name: str) -> str:
    """An answer without the white space after it.

    Raises:
        BadRow: nothing is left.
    """
    if not text.strip():
        raise BadRow(Reason.EMPTY_ANSWER, f"'{name}' is empty")
    return text.rstrip()


def _said(message: Message, name: str) -> str:
    if message.more:
        fields = ", ".join(json.loads(message.more))
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' is an answer with {fields}: an answer is read as text alone")
    return message.content


def split_last_answer(messages: Messages, name: str) -> tuple[Messages, str]:
    """A conversation's last answer, and what it answers.

    Raises:
        BadRow: it does not end with an answer.
    """
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadRow(Reason.BAD_CONVERSATION, f"'{name}' does not end with an answer of the assistant")
    prompt = messages[:-1]
    if not (prompt[-1].content.strip() or prompt[-1].more) or prompt[-1].role == "assistant":
        raise BadRow(Reason.EMPTY_PROMPT, f"the last turn of '{name}' before the answer is empty or an answer")
    return prompt, checked_answer(_said(messages[-1], name), name)


def split_common(chosen: Messages, rejected: Messages) -> tuple[Messages, str, str]:
    """Common prompt and the two answers: the first turns that differ, which must be assistant turns.

    Some transcripts part before their last turn; what follows the first differing answers is not comparable and left out.

    Raises:
        BadRow: they do not part at an answer.
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
    if not (prompt[-1].content.strip() or prompt[-1].more):
        raise BadRow(Reason.EMPTY_PROMPT, "the last turn before the answers is empty")
    answers = [checked_answer(_said(side[shared], name), name) for name, side in (("chosen", chosen), ("rejected", rejected))]
    return prompt, answers[0], answers[1]
