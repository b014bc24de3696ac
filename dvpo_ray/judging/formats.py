"""Questions and answers in the formats of public benchmarks: what their own tools write, ours reads, and the other way round.

| format | a question | an answer |
|---|---|---|
| ``mt-bench`` | ``question_id``, ``turns`` | ``question_id``, ``model_id``, ``choices``: ``turns`` (FastChat, ``llm_judge``) |
| ``alpaca-eval`` | ``instruction``, ``dataset`` | ``instruction``, ``output``, ``generator``, ``dataset`` (one JSON list) |
| ``arena-hard`` | ``uid``, ``prompt`` | ``uid``, ``model``, ``messages`` (arena-hard-auto) |
| ``jsonl`` | ``id``, ``prompt`` | ``id``, ``model``, ``prompt``, ``answer`` |
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dvpo_ray.data.formats import parse_prompt, row_id
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.data.reasons import BadRow
from dvpo_ray.errors import ConfigError, DataError

CODE_BLOCK = re.compile(r"```[^`]*```")


@dataclass(frozen=True)
class Question:
    """What is asked, turn by turn; ``row`` is as it was read.

    Example: ``Question("81", ((Message("user", "Write a poem."),), (Message("user", "Now shorter."),)), {...})``. A turn has more
    than one message when it begins with earlier parts of a conversation.
    """

    key: str
    turns: tuple[Messages, ...]
    row: Mapping[str, Any]

    @property
    def asked(self) -> tuple[str, ...]:
        """Each turn as text; of more than one message, each after its role."""
        return tuple(
            turn[0].content if len(turn) == 1 else "\n\n".join(f"{message.role}: {message.content}" for message in turn)
            for turn in self.turns
        )


@dataclass(frozen=True)
class Answered:
    """The answers to a question, one a turn. ``asked`` is the text of its turns, None when the format does not repeat it.

    Example: ``Answered("81", None, ("Roses are red ...", "Roses."))``.
    """

    key: str
    asked: tuple[str, ...] | None
    answers: tuple[str, ...]


class Format(Protocol):
    """A benchmark's files. Rows are JSON objects; every reader raises DataError that begins with ``where``."""

    as_list: bool
    """Whether answers are one JSON list instead of JSON lines."""
    has_ids: bool
    """Whether questions have ids; else they are known by their text, and equal ones by their order."""

    def question(self, row: Mapping[str, Any], where: str) -> Question:
        """The question that a row holds."""
        ...

    def written(self, question: Question, answers: Sequence[str], model: str, tokens: Sequence[int]) -> dict[str, Any]:
        """The row that holds the answers of a model, which have so many tokens."""
        ...

    def answered(self, row: Mapping[str, Any], where: str) -> Answered:
        """What such a row holds."""
        ...


class MtBench:
    """MT-Bench: two turns, the second asked after the first was answered."""

    as_list, has_ids = False, True

    def question(self, row: Mapping[str, Any], where: str) -> Question:
        """``{"question_id": 81, "category": "writing", "turns": ["...", "..."]}``."""
        turns = _texts(row, "turns", where)
        return Question(str(_identity(row, "question_id", where)), tuple((Message("user", turn),) for turn in turns), row)

    def written(self, question: Question, answers: Sequence[str], model: str, tokens: Sequence[int]) -> dict[str, Any]:
        """A line of ``model_answer/MODEL.jsonl``."""
        return {
            "question_id": question.row["question_id"],
            "answer_id": uuid.uuid4().hex,
            "model_id": model,
            "choices": [{"index": 0, "turns": list(answers)}],
            "tstamp": time.time(),
        }

    def answered(self, row: Mapping[str, Any], where: str) -> Answered:
        """The first choice, as the benchmark's own judge takes it."""
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise _wrong(where, "choices", choices, "a list of objects with 'turns'")
        return Answered(str(_identity(row, "question_id", where)), None, _texts(choices[0], "turns", where))


class AlpacaEval:
    """AlpacaEval: instructions, known by their text."""

    as_list, has_ids = True, False

    def question(self, row: Mapping[str, Any], where: str) -> Question:
        """``{"instruction": "...", "dataset": "helpful_base"}``, with or without somebody's ``output``."""
        instruction = _text(row, "instruction", where)
        return Question(instruction, ((Message("user", instruction),),), row)

    def written(self, question: Question, answers: Sequence[str], model: str, tokens: Sequence[int]) -> dict[str, Any]:
        """An item of ``model_outputs``."""
        origin = {name: question.row[name] for name in ("dataset", "datasplit") if name in question.row}
        return {"instruction": question.row["instruction"], "output": answers[0], "generator": model} | origin

    def answered(self, row: Mapping[str, Any], where: str) -> Answered:
        """One output."""
        instruction = _text(row, "instruction", where)
        return Answered(instruction, (instruction,), (_text(row, "output", where, empty=True),))


class ArenaHard:
    """Arena-Hard-Auto: one turn, and what its style control needs to know of the answer."""

    as_list, has_ids = False, True

    def question(self, row: Mapping[str, Any], where: str) -> Question:
        """``{"uid": "...", "category": "hard_prompt", "prompt": "..."}``."""
        uid = str(_identity(row, "uid", where))
        return Question(uid, ((Message("user", _text(row, "prompt", where)),),), row)

    def written(self, question: Question, answers: Sequence[str], model: str, tokens: Sequence[int]) -> dict[str, Any]:
        """A line of ``model_answer/MODEL.jsonl``; ``token_len`` counts the answering model's own tokens."""
        return {
            "uid": question.row["uid"],
            "ans_id": uuid.uuid4().hex,
            "model": model,
            "messages": [
                {"role": "user", "content": question.row["prompt"]},
                {"role": "assistant", "content": {"answer": answers[0]}},
            ],
            "tstamp": time.time(),
            "metadata": {"token_len": tokens[0]} | markdown_counts(answers[0]),
        }

    def answered(self, row: Mapping[str, Any], where: str) -> Answered:
        """The last message answers the last message of the user."""
        messages = row.get("messages")
        if not isinstance(messages, list) or len(messages) < 2 or not all(isinstance(m, Mapping) for m in messages):
            raise _wrong(where, "messages", messages, "a list of messages that ends with the user's and the assistant's")
        content = messages[-1].get("content")
        answer = _text(content if isinstance(content, Mapping) else {"answer": content}, "answer", where, empty=True)
        return Answered(str(_identity(row, "uid", where)), (_text(messages[-2], "content", where),), (answer,))


class Lines:
    """Our own: any prompts that the training data may have, one answer each."""

    as_list, has_ids = False, True

    def question(self, row: Mapping[str, Any], where: str) -> Question:
        """``{"id": "...", "prompt": "..."}``; the prompt may be a conversation."""
        try:
            return Question(row_id(row, where.rpartition("row ")[2]), (parse_prompt(row),), row)
        except BadRow as bad:
            raise DataError(f"{where}: {bad.detail}; mend the row or take it out") from bad

    def written(self, question: Question, answers: Sequence[str], model: str, tokens: Sequence[int]) -> dict[str, Any]:
        """The prompt as text, and its answer."""
        return {"id": question.key, "model": model, "prompt": question.asked[0], "answer": answers[0]}

    def answered(self, row: Mapping[str, Any], where: str) -> Answered:
        """One answer."""
        answer = _text(row, "answer", where, empty=True)
        return Answered(str(_identity(row, "id", where)), (_text(row, "prompt", where),), (answer,))


FORMATS: dict[str, Format] = {
    "mt-bench": MtBench(),
    "alpaca-eval": AlpacaEval(),
    "arena-hard": ArenaHard(),
    "jsonl": Lines(),
}


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in FORMATS:
        raise ConfigError(f"unknown format '{name}': use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Headers, list items and bold words outside code blocks, under Arena-Hard's names."""
    plain = CODE_BLOCK.sub("", text)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, plain, re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def _wrong(where: str, field: str, value: Any, expected: str) -> DataError:
    found = "missing" if value is None else f"{str(value)[:80]!r}"
    return DataError(f"{where}: '{field}' is {found}, expected {expected}; mend the row, or name the file's format by --format")


def _text(row: Mapping[str, Any], field: str, where: str, empty: bool = False) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not (value.strip() or empty):
        raise _wrong(where, field, value, "text")
    return value


def _texts(row: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    value = row.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise _wrong(where, field, value, "a list of texts")
    return tuple(value)


def _identity(row: Mapping[str, Any], field: str, where: str) -> str | int:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _wrong(where, field, value, "text or an integer")
    return value
