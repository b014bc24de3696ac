"""Every row format and every reason for refusal, by example."""

from __future__ import annotations

from typing import Any

import pytest

from dvpo_ray.data.formats import parse_pair, parse_prompt, row_id
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes import best_answer, recognise

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "Go away."}
EXPECTED = ((Message("user", "Hi"),), "Hello!", "Go away.")


def demonstration_in(row: dict[str, Any]) -> tuple[Messages, str]:
    """Prompt and good answer of a row, as loading reads them."""
    found = recognise([row], "demonstrations").rows(row)[0]
    return found.prompt, best_answer(found)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "Hello!", "rejected": [BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away."},
    ],
    ids=["strings", "conversations", "mixed", "prompt repeated", "implicit prompt", "transcript"],
)
def test_pair_formats(row: dict[str, Any]) -> None:
    assert parse_pair(row) == EXPECTED


def test_transcript_with_earlier_turns() -> None:
    head = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    prompt, chosen, rejected = parse_pair({"chosen": head + "\n\nAssistant: d", "rejected": head + "\n\nAssistant: e"})
    assert [m.role for m in prompt] == ["user", "assistant", "user"]
    assert (prompt[-1].content, chosen, rejected) == ("c", "d", "e")


def test_transcripts_that_part_early_are_cut_there() -> None:
    chosen = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    rejected = "\n\nHuman: a\n\nAssistant: x\n\nHuman: y\n\nAssistant: z"
    assert parse_pair({"chosen": chosen, "rejected": rejected}) == ((Message("user", "a"),), "b", "x")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "chosen": "a"}, Reason.MISSING_FIELD),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, Reason.EMPTY_PROMPT),
        ({"prompt": "Hi", "chosen": "", "rejected": "b"}, Reason.EMPTY_ANSWER),
        ({"prompt": "Hi", "chosen": "a", "rejected": " a "}, Reason.EQUAL_ANSWERS),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, Reason.WRONG_TYPE),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, Reason.WRONG_TYPE),
        ({"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"}, Reason.WRONG_TYPE),
        ({"chosen": "no turns", "rejected": "none"}, Reason.MISSING_FIELD),
        ({"chosen": [USER, GOOD], "rejected": [USER, GOOD]}, Reason.EQUAL_ANSWERS),
        ({"chosen": [GOOD], "rejected": [BAD]}, Reason.BAD_TRANSCRIPT),
        ({"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD, BAD, BAD]}, Reason.BAD_TRANSCRIPT),
    ],
)
def test_bad_pairs(row: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(BadRow) as caught:
        parse_pair(row)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "row",
    [{"prompt": "Hi"}, {"prompt": [USER]}, {"question": "Hi"}, {"turns": ["Hi", "More"]}],
    ids=["string", "chat", "question", "turns"],
)
def test_prompt_formats(row: dict[str, Any]) -> None:
    assert parse_prompt(row) == (Message("user", "Hi"),)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello! \n"},
        {"prompt": [USER], "completion": [GOOD]},
        {"question": "Hi", "completion": "Hello!"},
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["strings", "conversations", "question", "pair", "pair with an implicit prompt"],
)
def test_demonstration_formats(row: dict[str, Any]) -> None:
    assert demonstration_in(row) == ((Message("user", "Hi"),), "Hello!")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi"}, Reason.MISSING_FIELD),
        ({"completion": "Hello!"}, Reason.MISSING_FIELD),
        ({"prompt": "Hi", "completion": " "}, Reason.EMPTY_ANSWER),
        ({"prompt": "Hi", "completion": [USER]}, Reason.WRONG_TYPE),
        ({"prompt": "Hi", "chosen": "Hello!"}, Reason.MISSING_FIELD),
    ],
)
def test_bad_demonstrations(row: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(BadRow) as caught:
        demonstration_in(row)
    assert caught.value.reason == reason


def test_ids() -> None:
    assert row_id({"question_id": 81}, "f:1") == "81"
    assert row_id({}, "f:1") == "f:1"
