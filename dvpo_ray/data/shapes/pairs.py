"""Rows that say which answer was chosen and which rejected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dvpo_ray.data.messages import TRANSCRIPT, Messages, answer_of, conversation, prompt_of, split_common, transcript
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes.base import PROMPTS, TALKS, Answer, Prompted, Row, are_texts, first_of, has, needed, shape
from dvpo_ray.data.shapes.prompts import better_and_worse, read_prompt


@shape(
    "best_first",
    "`instruction`, and `output` as a list of two texts, the better one first",
    lambda r: has(r, "instruction") and are_texts(r.get("output")) and len(r["output"]) == 2,
)
def _best_first(row: Row) -> Iterator[Prompted]:
    yield better_and_worse(read_prompt(row), row["output"][0], row["output"][1], ("output[0]", "output[1]"))


@shape(
    "several_chosen",
    "a prompt, `chosen` and `rejected` as lists of texts: RewardBench 2",
    lambda r: are_texts(r.get("chosen")) and are_texts(r.get("rejected")),
)
def _several_chosen(row: Row) -> Iterator[Prompted]:
    prompt = read_prompt(row)
    scored = [(text, name, score) for name, score in (("chosen", 1.0), ("rejected", 0.0)) for text in row[name]]
    yield Prompted(prompt, tuple(Answer(answer_of(text, prompt, name), score) for text, name, score in scored))


@shape(
    "pair",
    "`prompt`, `chosen`, `rejected`, as text or conversations (which may repeat the prompt)",
    lambda r: has(r, "prompt", "chosen", "rejected"),
)
@shape(
    "pair_beside_question",
    "`question`, `instruction` (with `input`, `history`), `query`, ..., `chosen`, `rejected`: Orca DPO, Alpaca pairs",
    lambda r: has(r, "chosen", "rejected") and not has(r, "prompt") and first_of(r, PROMPTS) is not None,
)
@shape(
    "pair_beside_talk",
    "`conversations` or `messages`, and `chosen` and `rejected` as one answer each: ShareGPT pairs",
    lambda r: has(r, "chosen", "rejected") and not has(r, "prompt") and first_of(r, TALKS) is not None,
)
def _pair(row: Row) -> Iterator[Prompted]:
    yield better_and_worse(read_prompt(row), needed(row, "chosen"), needed(row, "rejected"))


@shape(
    "pair_of_talks", "`chosen` and `rejected` as conversations with a common beginning", lambda r: has(r, "chosen", "rejected")
)
@shape(
    "hh_transcripts",
    '`chosen` and `rejected` as transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ..."',
    lambda r: all(isinstance(r.get(name), str) and TRANSCRIPT.match(r[name]) for name in ("chosen", "rejected")),
)
def _pair_of_talks(row: Row) -> Iterator[Prompted]:
    chosen, rejected = (_whole_talk(needed(row, name), name) for name in ("chosen", "rejected"))
    prompt, better, worse = split_common(chosen, rejected)
    if has(row, "system") and prompt[0].role != "system":
        prompt = prompt_of([m.turn for m in prompt], "system", row["system"])
    yield Prompted(prompt, (Answer(better, 1.0), Answer(worse, 0.0)))


def _whole_talk(value: Any, name: str) -> Messages:
    if not isinstance(value, str):
        return conversation(value, name)
    if not TRANSCRIPT.match(value):
        raise BadRow(Reason.MISSING_FIELD, f"no 'prompt', and '{name}' is no transcript of Human and Assistant turns")
    return transcript(value, name)
