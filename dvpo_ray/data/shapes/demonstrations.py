"""Rows that compare nothing: a prompt with an answer, a conversation, or a prompt alone."""

from __future__ import annotations

from collections.abc import Iterator

from dvpo_ray.data.messages import answer_of, conversation, prompt_of, split_last_answer
from dvpo_ray.data.shapes.base import SINGLE, TALKS, Answer, Prompted, Row, first_of, has, needed, shape
from dvpo_ray.data.shapes.prompts import has_prompt, read_prompt, without_answer


@shape(
    "question_and_answer",
    "`question`, `query` or `input`, and `answer`, `response`, `output`, ...",
    lambda r: first_of(r, ("question", "query", "input")) is not None and first_of(r, SINGLE) is not None,
    gives="demonstrations",
)
@shape(
    "alpaca",
    "`instruction`, perhaps `input`, and `output` or `response`",
    lambda r: has(r, "instruction") and first_of(r, SINGLE) is not None,
    "demonstrations",
)
@shape(
    "prompt_and_completion",
    "`prompt` and `completion` or `response`",
    lambda r: has(r, "prompt") and first_of(r, SINGLE) is not None,
    "demonstrations",
)
def _demonstration(row: Row) -> Iterator[Prompted]:
    prompt = read_prompt(row)
    yield Prompted(prompt, (Answer(answer_of(needed(row, "completion", *SINGLE), prompt, "completion")),))


@shape(
    "problem_and_solution",
    "`problem` and `solution` or `answer`",
    lambda r: has(r, "problem") and first_of(r, ("solution", "answer")) is not None,
    "demonstrations",
)
def _solution(row: Row) -> Iterator[Prompted]:
    prompt = read_prompt(row)
    yield Prompted(prompt, (Answer(answer_of(needed(row, "solution", "answer"), prompt, "solution")),))


@shape(
    "messages",
    "`messages`, or `conversations` of `from` and `value`, perhaps `tools` and `system`",
    lambda r: first_of(r, TALKS) is not None,
    "demonstrations",
)
def _talk(row: Row) -> Iterator[Prompted]:
    name = first_of(row, TALKS) or TALKS[0]
    talk = conversation(row[name], name)
    if talk and talk[-1].role == "assistant" and len(talk) > 1 and not talk[-1].more:
        prompt, answer = split_last_answer(talk, name)
        yield Prompted(prompt_of([m.turn for m in prompt], name, row.get("system")), (Answer(answer),))
    else:
        yield Prompted(without_answer(talk, name, row.get("system")))


@shape(
    "prompt",
    "`prompt`, `question`, `instruction`, `problem`, `query`, `input`, `text`, ..., or `turns` (MT-Bench: the first)",
    lambda r: has_prompt(r),
    gives="prompts",
)
def _prompt_alone(row: Row) -> Iterator[Prompted]:
    yield Prompted(read_prompt(row))
