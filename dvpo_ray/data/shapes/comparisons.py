"""Rows of two answers with a verdict on them, each dataset with names of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dvpo_ray.data.messages import conversation, prompt_of, split_common, text_of
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes.base import (
    GOOD_OR_BAD,
    Answer,
    Prompted,
    Row,
    Scale,
    are_texts,
    first_of,
    has,
    needed,
    number,
    shape,
    tools_of,
)
from dvpo_ray.data.shapes.prompts import better_and_worse, compared, read_prompt


@shape(
    "openai",
    "`input`, `preferred_output`, `non_preferred_output`",
    lambda r: has(r, "preferred_output", "non_preferred_output"),
    own_prompts=True,
)
def _openai(row: Row) -> Iterator[Prompted]:
    given = needed(row, "input", "messages", "prompt")
    tools = tools_of(given) if isinstance(given, Mapping) else ""
    found = better_and_worse(
        prompt_of(given, "input"),
        row["preferred_output"],
        row["non_preferred_output"],
        ("preferred_output", "non_preferred_output"),
    )
    yield replace(found, tools=tools)


@shape(
    "pku_saferlhf",
    "`prompt`, `response_0`, `response_1`, `better_response_id`",
    lambda r: has(r, "response_0", "response_1", "better_response_id"),
)
def _pku(row: Row) -> Iterator[Prompted]:
    lead = {0: 1.0, 1: -1.0}.get(int(number(row["better_response_id"], "better_response_id")), 0.0)
    yield compared(read_prompt(row), row["response_0"], row["response_1"], ("response_0", "response_1"), lead)


@shape(
    "helpsteer3",
    "`context`, `response1`, `response2`, `overall_preference`",
    lambda r: has(r, "response1", "response2", "overall_preference"),
)
def _helpsteer3(row: Row) -> Iterator[Prompted]:
    prompt = prompt_of(needed(row, "context", "prompt"), "context")
    lead = -number(row["overall_preference"], "overall_preference")
    yield compared(prompt, row["response1"], row["response2"], ("response1", "response2"), lead)


@shape("shp", "`history`, `human_ref_A`, `human_ref_B`, `labels`", lambda r: has(r, "human_ref_A", "human_ref_B", "labels"))
def _shp(row: Row) -> Iterator[Prompted]:
    lead = 1.0 if number(row["labels"], "labels") == 1 else -1.0
    yield compared(
        prompt_of(needed(row, "history", "prompt"), "history"),
        row["human_ref_A"],
        row["human_ref_B"],
        ("human_ref_A", "human_ref_B"),
        lead,
    )


@shape("arena", "`conversation_a`, `conversation_b`, `winner`", lambda r: has(r, "conversation_a", "conversation_b", "winner"))
def _arena(row: Row) -> Iterator[Prompted]:
    sides = [conversation(row[name], name) for name in ("conversation_a", "conversation_b")]
    prompt, first, second = split_common(sides[0], sides[1])
    answers = (Answer(first, _winner(row["winner"], "winner")), Answer(second, 0.0))
    yield Prompted(prompt, answers, scale=_scale(row["winner"]))


def _winner(value: Any, name: str) -> float:
    """By how much the first of two answers is better: 1, -1, or 0 for a tie."""
    word = str(value).strip().lower()
    if word in ("a", "model_a", "response_a", "assistant_a", "1", "first", "left"):
        return 1.0
    if word in ("b", "model_b", "response_b", "assistant_b", "2", "second", "right"):
        return -1.0
    if word.startswith("tie") or word in ("both", "bothbad", "both_bad", "equal", "same", "neither", "0"):
        return 0.0
    raise BadRow(Reason.WRONG_TYPE, f"'{name}' is {str(value)[:40]!r}, expected who of the two is better, or a tie")


def _scale(verdict: Any) -> Scale | None:
    """That of scores of 0 for two answers which are both called bad: the verdict says more than that none is better."""
    word = str(verdict).strip().lower()
    return GOOD_OR_BAD if word in ("tie (bothbad)", "bothbad", "both_bad", "neither") else None


VERDICTS = ("winner", "preference", "preferred", "better", "choice", "label")


@shape(
    "two_responses",
    "a prompt, `response_a`, `response_b`, and `winner`, `preference`, ..., or `winner_model_a` and its like",
    lambda r: has(r, "response_a", "response_b") and (first_of(r, VERDICTS) is not None or has(r, "winner_model_a")),
    own_prompts=True,
)
def _two_responses(row: Row) -> Iterator[Prompted]:
    name, scale = first_of(row, VERDICTS), None
    if has(row, "winner_model_a"):
        lead = number(row["winner_model_a"], "winner_model_a") - number(row.get("winner_model_b") or 0, "winner_model_b")
    else:
        verdict = needed(row, *VERDICTS)
        lead, scale = _winner(verdict, name or VERDICTS[0]), _scale(verdict)
    asked, first, second = (_said_in_turn(row.get(column)) for column in ("prompt", "response_a", "response_b"))
    if asked and first and second:
        # Only the first answers have a prompt in common.
        prompt = prompt_of(asked[0], "prompt", row.get("system"))
        yield replace(compared(prompt, first[0], second[0], ("response_a", "response_b"), lead), scale=scale)
        return
    found = compared(read_prompt(row), row["response_a"], row["response_b"], ("response_a", "response_b"), lead)
    yield replace(found, scale=scale)


def _said_in_turn(value: Any) -> list[str] | None:
    """What somebody said in his turns: a list of texts, or its JSON; None when it is no such list."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return list(value) if are_texts(value) else None


@shape(
    "summarize_from_feedback", "`info` with a `post`, two `summaries`, `choice`", lambda r: has(r, "info", "summaries", "choice")
)
def _summaries(row: Row) -> Iterator[Prompted]:
    info, summaries = row["info"], row["summaries"]
    if isinstance(summaries, Mapping):
        summaries = [{"text": text} for text in summaries.get("text", ())]
    if not isinstance(info, Mapping) or not isinstance(summaries, Sequence) or len(summaries) != 2:
        raise BadRow(Reason.WRONG_TYPE, "'info' is no object, or 'summaries' are not two")
    head = [f"{label}: {info[key]}" for label, key in (("SUBREDDIT", "subreddit"), ("TITLE", "title")) if info.get(key)]
    post = next((info[key] for key in ("post", "article") if info.get(key)), None)
    if post is None:
        raise BadRow(Reason.MISSING_FIELD, "'info' has neither 'post' nor 'article'")
    prompt = prompt_of("\n\n".join([*head, f"POST: {post}", "TL;DR:"]), "info")
    lead = {0: 1.0, 1: -1.0}.get(int(number(row["choice"], "choice")), 0.0)
    texts = [text_of(one.get("text") if isinstance(one, Mapping) else one, "summaries") for one in summaries]
    yield compared(prompt, texts[0].lstrip(), texts[1].lstrip(), ("summaries[0]", "summaries[1]"), lead)


@shape(
    "stack_exchange",
    "`question`, `response_j` (the better one), `response_k`",
    lambda r: has(r, "question", "response_j", "response_k"),
)
def _stack_exchange(row: Row) -> Iterator[Prompted]:
    yield better_and_worse(read_prompt(row), row["response_j"], row["response_k"], ("response_j", "response_k"))


@shape(
    "webgpt",
    "`question`, `answer_0`, `answer_1`, `score_0`, `score_1`",
    lambda r: has(r, "answer_0", "answer_1", "score_0", "score_1"),
)
def _webgpt(row: Row) -> Iterator[Prompted]:
    lead = number(row["score_0"], "score_0") - number(row["score_1"], "score_1")
    yield compared(read_prompt(row), row["answer_0"], row["answer_1"], ("answer_0", "answer_1"), lead)
