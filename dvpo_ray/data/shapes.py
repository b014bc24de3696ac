"""The shapes of rows that people have, each read as one thing: prompts with answers, and scores where answers are compared.

A shape is recognised by the columns of a source's first rows (``recognise``), or named by the recipe's ``format``; ``columns`` of
the recipe gives its names to other columns. Sources of the shapes: the datasets' own cards.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dvpo_ray.data.messages import (
    TRANSCRIPT,
    Message,
    Messages,
    answer_of,
    checked_answer,
    conversation,
    prompt_of,
    split_common,
    split_last_answer,
    text_of,
    transcript,
)
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.errors import DataError

Row = Mapping[str, Any]
Use = Literal["pairs", "demonstrations", "prompts"]
USES: tuple[Use, ...] = ("prompts", "demonstrations", "pairs")


@dataclass(frozen=True)
class Answer:
    """An answer's text, and its score among those of its prompt (higher is better); without one it is not compared."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Prompted:
    """A prompt and the answers that a row gives to it; ``tools`` is a JSON list of what its template may offer, or empty."""

    prompt: Messages
    answers: tuple[Answer, ...] = ()
    tools: str = ""


@dataclass(frozen=True)
class Shape:
    """How rows of one shape are read.

    ``columns`` says for people what it is recognised by. ``gives`` is "pairs" when answers are compared, else "demonstrations" or
    "prompts"; what gives more gives less, too. ``gathered``: a row holds one answer of several to its prompt.
    """

    name: str
    columns: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], Iterator[Prompted]]
    gives: Use
    gathered: bool = False

    def rows(self, row: Row) -> list[Prompted]:
        """What a row holds, with the system message and the tools that stand beside it.

        Raises:
            BadRow: with the reason.
        """
        found = list(self.read(row))
        tools = _tools(row)
        return [replace(one, tools=tools) for one in found] if tools else found


Reader = Callable[[Row], Iterator[Prompted]]
SHAPES: dict[str, Shape] = {}
# Scores of answers, in the order in which they are looked for.
SCORES = ("score", "overall_score", "fine-grained_score", "helpfulness", "rating", "reward", "overall", "quality")
RANKS = ("rank", "ranking")
ANSWERS = ("response", "completion", "answer", "output", "text", "content")
SINGLE = ("response", "completion", "answer", "output", "generation")
LISTS = ("completions", "answers", "responses", "outputs", "candidates", "generations")
PROMPTS = ("prompt", "instruction", "question", "problem", "query", "input", "context", "text", "post", "history")
TALKS = ("messages", "conversations", "conversation", "dialog", "dialogue")
SAMPLE = 100


def _shape(
    name: str, columns: str, fits: Callable[[Row], bool], gives: Use = "pairs", gathered: bool = False
) -> Callable[[Reader], Reader]:
    def register(read: Reader) -> Reader:
        SHAPES[name] = Shape(name, columns, fits, read, gives, gathered)
        return read

    return register


def shape_of(row: Row, use: Use) -> Shape | None:
    """The first shape that a row has and that gives what is wanted."""
    enough = USES[USES.index(use) :]
    return next((shape for shape in SHAPES.values() if shape.gives in enough and shape.fits(row)), None)


def recognise(rows: Sequence[Row], use: Use) -> Shape:
    """The shape that most rows of a sample have; the plainest that gives what is wanted when no row has any."""
    votes = Counter(shape.name for row in rows if (shape := shape_of(row, use)) is not None)
    plain = {"pairs": "pair", "demonstrations": "prompt_and_completion", "prompts": "prompt"}[use]
    return SHAPES[votes.most_common(1)[0][0] if votes else plain]


def shape_named(name: str) -> Shape:
    """A shape by its name.

    Raises:
        DataError: there is none, naming those there are.
    """
    if name not in SHAPES:
        raise DataError(f"format = '{name}' is no known shape of rows; take one of {', '.join(map(repr, SHAPES))}, or 'auto'")
    return SHAPES[name]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns under the names that shapes know: ``{"prompt": "meta.ask"}`` reads a nested one."""
    if not columns:
        return row
    found = {name: value for name, value in row.items() if name not in columns.values()}
    for name, path in columns.items():
        value: Any = row.get(path)
        if path not in row:
            value = row
            for part in path.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        found[name] = value
    return found


def has(row: Row, *names: str) -> bool:
    """Whether a row has something in each of these columns."""
    return all(row.get(name) is not None for name in names)


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _needed(row: Row, *names: str) -> Any:
    found = _first(row, names)
    if found is None:
        wanted = f"'{names[0]}' is missing" if len(names) == 1 else f"none of {', '.join(map(repr, names))}"
        raise BadRow(Reason.MISSING_FIELD, wanted)
    return row[found]


def _number(value: Any, name: str) -> float:
    """A score; a label in words counts as one.

    Raises:
        BadRow: it is none.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("true", "good", "yes", "desirable", "thumbs_up"):
            return 1.0
        if word in ("false", "bad", "no", "undesirable", "thumbs_down"):
            return 0.0
        try:
            value = float(word)
        except ValueError as error:
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' is {value[:40]!r}, expected a number") from error
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' is {str(value)[:40]}, expected a number")
    return float(value)


def prompts_in(row: Row, shape: Shape) -> list[Prompted]:
    """The prompts of a row, whatever its answers are like where the prompt stands beside them.

    Raises:
        BadRow: with the reason.
    """
    if shape.name != "open_assistant_tree" and _prompt_column(row):
        return [Prompted(read_prompt(row), tools=_tools(row))]
    return shape.rows(row)


def pairs_in(prompted: Prompted) -> list[tuple[str, str]]:
    """Better and worse answers to one prompt: where answers are only good or bad, every one of them in a pair, else the best with
    the worst.

    Raises:
        BadRow: nothing is compared, or nothing differs.
    """
    scored = [(answer.text, answer.score) for answer in prompted.answers if answer.score is not None]
    if not scored:
        raise BadRow(Reason.MISSING_FIELD, "no answers are compared: 'chosen' and 'rejected' are missing, or scores")
    if len(scored) == 1:
        raise BadRow(Reason.NO_PARTNER, "the only answer to its prompt: there is none to compare it with")
    scores = [score for _, score in scored]
    best, worst = max(scores), min(scores)
    if best == worst:
        raise BadRow(Reason.TIE, f"all {len(scored)} answers have the score {best:g}")
    good = [text for text, score in scored if score == best]
    bad = [text for text, score in scored if score == worst]
    count = max(len(good), len(bad)) if len(good) + len(bad) == len(scored) else 1
    found = [(good[i % len(good)], bad[i % len(bad)]) for i in range(count)]
    different = [pair for pair in found if pair[0].strip() != pair[1].strip()]
    if not different:
        raise BadRow(Reason.EQUAL_ANSWERS, "the better and the worse answer are the same")
    return different


def best_answer(prompted: Prompted) -> str:
    """The answer that is an example of a good one.

    Raises:
        BadRow: there is none, or all are bad.
    """
    if not prompted.answers:
        raise BadRow(Reason.MISSING_FIELD, "neither 'completion' nor 'chosen'")
    best = max(prompted.answers, key=lambda answer: answer.score or 0.0)
    if len(prompted.answers) > 1 and best.score == min(answer.score or 0.0 for answer in prompted.answers):
        raise BadRow(Reason.TIE, f"all {len(prompted.answers)} answers have the score {best.score:g}")
    if len(prompted.answers) == 1 and best.score is not None and best.score <= 0:
        raise BadRow(Reason.LOW_SCORE, f"its only answer has the score {best.score:g}: it is no example of a good one")
    return best.text


def _tools(row: Row) -> str:
    found = row.get("tools")
    if not found:
        return ""
    try:
        tools = json.loads(found) if isinstance(found, str) else found
    except ValueError as error:
        raise BadRow(Reason.WRONG_TYPE, f"'tools' is no JSON: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(Reason.WRONG_TYPE, "'tools' is no list of objects")
    return json.dumps(tools) if tools else ""


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
            return _without_answer(conversation(row[name], name), name, row.get("system"))
    found = _first(row, PROMPTS)
    if found is None:
        raise BadRow(Reason.MISSING_FIELD, f"none of {', '.join(map(repr, ('prompt', 'question', 'turns', *TALKS, *PROMPTS[3:])))}")
    return prompt_of(row[found], found, row.get("system"))


def _question(value: Any) -> Any:
    """WebGPT's questions are objects, Arena's prompts are JSON lists of what the user said."""
    if isinstance(value, Mapping) and isinstance(value.get("full_text"), str):
        return value["full_text"]
    return value


def _without_answer(messages: Messages, name: str, system: Any = None) -> Messages:
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


def _two(prompt: Messages, better: Any, worse: Any, names: tuple[str, str] = ("chosen", "rejected")) -> Prompted:
    texts = [answer_of(value, prompt, name) for value, name in zip((better, worse), names, strict=True)]
    return Prompted(prompt, (Answer(texts[0], 1.0), Answer(texts[1], 0.0)))


def _compared(prompt: Messages, first: Any, second: Any, names: tuple[str, str], lead: float) -> Prompted:
    """Two answers, of which the first is better by ``lead``; a tie has none better."""
    texts = [answer_of(value, prompt, name) for value, name in zip((first, second), names, strict=True)]
    return Prompted(prompt, (Answer(texts[0], lead), Answer(texts[1], 0.0)))


@_shape("openai", "`input`, `preferred_output`, `non_preferred_output`", lambda r: has(r, "preferred_output", "non_preferred_output"))
def _openai(row: Row) -> Iterator[Prompted]:
    given = _needed(row, "input", "messages", "prompt")
    tools = _tools(given) if isinstance(given, Mapping) else ""
    found = _two(
        prompt_of(given, "input"), row["preferred_output"], row["non_preferred_output"], ("preferred_output", "non_preferred_output")
    )
    yield replace(found, tools=tools)


def _rated_list(row: Row) -> str | None:
    """The column with a list of answers that say themselves how good they are."""
    for name in LISTS:
        value = row.get(name)
        if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
            if any(_first(value[0], (*SCORES, *RANKS)) for _ in value[:1]):
                return name
    return None


@_shape(
    "rated_answers",
    "a prompt, and a list of objects with an answer and its score or rank (`completions`, `answers`, ...): UltraFeedback, Nectar, NeMo",
    lambda r: _rated_list(r) is not None,
)
def _rated_answers(row: Row) -> Iterator[Prompted]:
    name = _rated_list(row) or LISTS[0]
    prompt = read_prompt(row)
    answers = []
    for item in row[name]:
        score = _first(item, SCORES)
        rank = _first(item, RANKS)
        key = _first(item, ANSWERS)
        if key is None:
            raise BadRow(Reason.MISSING_FIELD, f"'{name}' has an answer without any of {', '.join(map(repr, ANSWERS))}")
        if score is not None:
            grade = _number(item[score], f"{name}.{score}")
        elif rank is not None:
            grade = -_number(item[rank], f"{name}.{rank}")
        else:
            raise BadRow(Reason.MISSING_FIELD, f"'{name}' has an answer without a score or rank")
        answers.append(Answer(answer_of(item[key], prompt, f"{name}.{key}"), grade))
    yield Prompted(prompt, tuple(answers))


def _scored_lists(row: Row) -> tuple[str, str] | None:
    """Columns of several answers and of their scores."""
    answers = next((name for name in LISTS if _texts(row.get(name))), None)
    scores = next((n for n in (*(f"{s}s" for s in SCORES), *SCORES, "ranks", *RANKS) if isinstance(row.get(n), list | tuple)), None)
    return (answers, scores) if answers and scores else None


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)


@_shape(
    "answers_and_scores",
    "a prompt, a list of texts (`answers`, `responses`, ...) and one of numbers (`scores`, `ratings`, `ranks`, ...)",
    lambda r: _scored_lists(r) is not None,
)
def _answers_and_scores(row: Row) -> Iterator[Prompted]:
    found = _scored_lists(row)
    if found is None:
        raise BadRow(Reason.MISSING_FIELD, "no list of answers with a list of scores")
    prompt, (texts, scores) = read_prompt(row), found
    if len(row[texts]) != len(row[scores]):
        raise BadRow(Reason.WRONG_TYPE, f"'{texts}' has {len(row[texts])} answers, '{scores}' has {len(row[scores])}")
    sign = -1 if scores in ("ranks", *RANKS) else 1
    pairs = zip(row[texts], row[scores], strict=True)
    yield Prompted(prompt, tuple(Answer(answer_of(t, prompt, texts), sign * _number(s, scores)) for t, s in pairs))


@_shape("pku_saferlhf", "`prompt`, `response_0`, `response_1`, `better_response_id`", lambda r: has(r, "response_0", "response_1", "better_response_id"))
def _pku(row: Row) -> Iterator[Prompted]:
    lead = {0: 1.0, 1: -1.0}.get(int(_number(row["better_response_id"], "better_response_id")), 0.0)
    yield _compared(read_prompt(row), row["response_0"], row["response_1"], ("response_0", "response_1"), lead)


@_shape("helpsteer3", "`context`, `response1`, `response2`, `overall_preference`", lambda r: has(r, "response1", "response2", "overall_preference"))
def _helpsteer3(row: Row) -> Iterator[Prompted]:
    prompt = prompt_of(_needed(row, "context", "prompt"), "context")
    lead = -_number(row["overall_preference"], "overall_preference")
    yield _compared(prompt, row["response1"], row["response2"], ("response1", "response2"), lead)


@_shape("shp", "`history`, `human_ref_A`, `human_ref_B`, `labels`", lambda r: has(r, "human_ref_A", "human_ref_B", "labels"))
def _shp(row: Row) -> Iterator[Prompted]:
    lead = 1.0 if _number(row["labels"], "labels") == 1 else -1.0
    yield _compared(prompt_of(_needed(row, "history", "prompt"), "history"), row["human_ref_A"], row["human_ref_B"], ("human_ref_A", "human_ref_B"), lead)


@_shape("arena", "`conversation_a`, `conversation_b`, `winner`", lambda r: has(r, "conversation_a", "conversation_b", "winner"))
def _arena(row: Row) -> Iterator[Prompted]:
    sides = [conversation(row[name], name) for name in ("conversation_a", "conversation_b")]
    prompt, first, second = split_common(sides[0], sides[1])
    yield Prompted(prompt, (Answer(first, _winner(row["winner"], "winner")), Answer(second, 0.0)))


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


VERDICTS = ("winner", "preference", "preferred", "better", "choice", "label")


@_shape(
    "two_responses",
    "a prompt, `response_a`, `response_b`, and `winner`, `preference`, ..., or `winner_model_a` and its like",
    lambda r: has(r, "response_a", "response_b") and (_first(r, VERDICTS) is not None or has(r, "winner_model_a")),
)
def _two_responses(row: Row) -> Iterator[Prompted]:
    name = _first(row, VERDICTS)
    if has(row, "winner_model_a"):
        lead = _number(row["winner_model_a"], "winner_model_a") - _number(row.get("winner_model_b") or 0, "winner_model_b")
    else:
        lead = _winner(_needed(row, *VERDICTS), name or VERDICTS[0])
    said = [_said_in_turn(row[column]) for column in ("prompt", "response_a", "response_b") if column in row]
    if len(said) == 3 and all(isinstance(turns, list) for turns in said) and len({len(turns) for turns in said if turns}) == 1:
        asked, first, second = said
        # Only the first answers have a prompt in common.
        prompt = prompt_of(asked[0], "prompt", row.get("system"))
        yield _compared(prompt, first[0], second[0], ("response_a", "response_b"), lead)
        return
    yield _compared(read_prompt(row), row["response_a"], row["response_b"], ("response_a", "response_b"), lead)


def _said_in_turn(value: Any) -> list[str] | None:
    """What somebody said in his turns: a list of texts, or its JSON; None when it is no such list."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return list(value) if _texts(value) else None


@_shape("summarize_from_feedback", "`info` with a `post`, two `summaries`, `choice`", lambda r: has(r, "info", "summaries", "choice"))
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
    lead = {0: 1.0, 1: -1.0}.get(int(_number(row["choice"], "choice")), 0.0)
    texts = [text_of(one.get("text") if isinstance(one, Mapping) else one, "summaries") for one in summaries]
    yield _compared(prompt, texts[0].lstrip(), texts[1].lstrip(), ("summaries[0]", "summaries[1]"), lead)


@_shape("stack_exchange", "`question`, `response_j` (the better one), `response_k`", lambda r: has(r, "question", "response_j", "response_k"))
def _stack_exchange(row: Row) -> Iterator[Prompted]:
    yield _two(read_prompt(row), row["response_j"], row["response_k"], ("response_j", "response_k"))


@_shape("webgpt", "`question`, `answer_0`, `answer_1`, `score_0`, `score_1`", lambda r: has(r, "answer_0", "answer_1", "score_0", "score_1"))
def _webgpt(row: Row) -> Iterator[Prompted]:
    lead = _number(row["score_0"], "score_0") - _number(row["score_1"], "score_1")
    yield _compared(read_prompt(row), row["answer_0"], row["answer_1"], ("answer_0", "answer_1"), lead)


@_shape(
    "best_first",
    "`instruction`, and `output` as a list of two texts, the better one first",
    lambda r: has(r, "instruction") and _texts(r.get("output")) and len(r["output"]) == 2,
)
def _best_first(row: Row) -> Iterator[Prompted]:
    yield _two(read_prompt(row), *row["output"], ("output[0]", "output[1]"))


@_shape(
    "several_chosen",
    "a prompt, `chosen` and `rejected` as lists of texts: RewardBench 2",
    lambda r: _texts(r.get("chosen")) and _texts(r.get("rejected")),
)
def _several_chosen(row: Row) -> Iterator[Prompted]:
    prompt = read_prompt(row)
    scored = [(text, name, score) for name, score in (("chosen", 1.0), ("rejected", 0.0)) for text in row[name]]
    yield Prompted(prompt, tuple(Answer(answer_of(text, prompt, name), score) for text, name, score in scored))


@_shape(
    "pair_beside_talk",
    "`conversations` or `messages`, and `chosen` and `rejected` as one answer each: ShareGPT pairs",
    lambda r: has(r, "chosen", "rejected") and not has(r, "prompt") and _first(r, TALKS) is not None,
)
def _pair_beside_talk(row: Row) -> Iterator[Prompted]:
    yield _two(read_prompt(row), row["chosen"], row["rejected"])


@_shape(
    "pair_beside_question",
    "`question`, `instruction` (with `input`, `history`), `query`, ..., `chosen`, `rejected`, perhaps `system`: Orca DPO, Alpaca pairs",
    lambda r: has(r, "chosen", "rejected") and not has(r, "prompt") and _first(r, PROMPTS) is not None,
)
def _pair_beside_question(row: Row) -> Iterator[Prompted]:
    yield _two(read_prompt(row), row["chosen"], row["rejected"])


@_shape("pair", "`prompt`, `chosen`, `rejected`, as text or conversations (which may repeat the prompt)", lambda r: has(r, "prompt", "chosen", "rejected"))
def _pair(row: Row) -> Iterator[Prompted]:
    yield _two(read_prompt(row), _needed(row, "chosen"), _needed(row, "rejected"))


@_shape("pair_of_talks", "`chosen` and `rejected` as conversations with a common beginning", lambda r: has(r, "chosen", "rejected"))
@_shape(
    "hh_transcripts",
    "`chosen` and `rejected` as transcripts, \"\\n\\nHuman: ...\\n\\nAssistant: ...\"",
    lambda r: all(isinstance(r.get(name), str) and TRANSCRIPT.match(r[name]) for name in ("chosen", "rejected")),
)
def _pair_of_talks(row: Row) -> Iterator[Prompted]:
    chosen, rejected = (_whole_talk(_needed(row, name), name) for name in ("chosen", "rejected"))
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


@_shape(
    "open_assistant_tree",
    "`prompt` with `replies`, and theirs: trees of Open Assistant",
    lambda r: isinstance(r.get("prompt"), Mapping) and isinstance(r["prompt"].get("replies"), list | tuple),
)
def _tree(row: Row) -> Iterator[Prompted]:
    found = list(_replies(row["prompt"], ()))
    if not found:
        raise BadRow(Reason.MISSING_FIELD, "the tree has no turn with several ranked answers")
    yield from found


def _replies(node: Row, before: Messages) -> Iterator[Prompted]:
    said = [(before, node)]
    while said:
        above, one = said.pop()
        role = {"prompter": "user"}.get(str(one.get("role")), str(one.get("role") or ("user" if not above else "")))
        talk = (*above, Message(role, text_of(one.get("text"), "text")))
        replies = [reply for reply in one.get("replies") or () if isinstance(reply, Mapping) and not reply.get("deleted")]
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if role == "user" and len(ranked) > 1:
            prompt = prompt_of([m.turn for m in talk], "prompt")
            yield Prompted(
                prompt,
                tuple(Answer(checked_answer(text_of(r.get("text"), "text"), "text"), -_number(r["rank"], "rank")) for r in ranked),
            )
        said += [(talk, reply) for reply in reversed(replies)]


@_shape(
    "labelled_answer",
    "a prompt, `completion` (or `response`, ...) and `label`, one answer a row: KTO",
    lambda r: has(r, "label") and _first(r, SINGLE) is not None and _prompt_column(r),
    gathered=True,
)
def _labelled(row: Row) -> Iterator[Prompted]:
    prompt = read_prompt(row)
    yield Prompted(prompt, (Answer(answer_of(_needed(row, *SINGLE), prompt, "completion"), _number(row["label"], "label")),))


def _prompt_column(row: Row) -> bool:
    return _first(row, (*PROMPTS, "turns", *TALKS)) is not None


@_shape(
    "rated_answer",
    "a prompt, `response` (or `completion`, ...) and a number (`score`, `helpfulness`, `rating`, ...), one answer a row: HelpSteer2",
    lambda r: _first(r, SINGLE) is not None and _prompt_column(r) and isinstance(r.get(_first(r, SCORES) or ""), int | float),
    gathered=True,
)
def _rated(row: Row) -> Iterator[Prompted]:
    prompt, name = read_prompt(row), _first(row, SCORES)
    score = _number(_needed(row, *SCORES), name or SCORES[0])
    yield Prompted(prompt, (Answer(answer_of(_needed(row, *SINGLE), prompt, "response"), score),))


@_shape(
    "question_and_answer",
    "`question`, `query` or `input`, and `answer`, `response`, `output`, ...",
    lambda r: _first(r, ("question", "query", "input")) is not None and _first(r, SINGLE) is not None,
    gives="demonstrations",
)
@_shape("alpaca", "`instruction`, perhaps `input`, and `output` or `response`", lambda r: has(r, "instruction") and _first(r, SINGLE) is not None, "demonstrations")
@_shape("prompt_and_completion", "`prompt` and `completion` or `response`", lambda r: has(r, "prompt") and _first(r, SINGLE) is not None, "demonstrations")
def _demonstration(row: Row) -> Iterator[Prompted]:
    prompt = read_prompt(row)
    yield Prompted(prompt, (Answer(answer_of(_needed(row, "completion", *SINGLE), prompt, "completion")),))


@_shape("problem_and_solution", "`problem` and `solution` or `answer`", lambda r: has(r, "problem") and _first(r, ("solution", "answer")) is not None, "demonstrations")
def _solution(row: Row) -> Iterator[Prompted]:
    prompt = read_prompt(row)
    yield Prompted(prompt, (Answer(answer_of(_needed(row, "solution", "answer"), prompt, "solution")),))


@_shape("messages", "`messages`, or `conversations` of `from` and `value`, perhaps `tools` and `system`", lambda r: _first(r, TALKS) is not None, "demonstrations")
def _talk(row: Row) -> Iterator[Prompted]:
    name = _first(row, TALKS) or TALKS[0]
    talk = conversation(row[name], name)
    if talk and talk[-1].role == "assistant" and len(talk) > 1 and not talk[-1].more:
        prompt, answer = split_last_answer(talk, name)
        yield Prompted(prompt_of([m.turn for m in prompt], name, row.get("system")), (Answer(answer),))
    else:
        yield Prompted(_without_answer(talk, name, row.get("system")))


@_shape(
    "open_assistant_messages",
    "single messages of Open Assistant: refused, take the file of trees",
    lambda r: has(r, "message_id", "text", "role") and "parent_id" in r,
)
def _single_messages(row: Row) -> Iterator[Prompted]:
    raise BadRow(Reason.WRONG_TYPE, "a single message of Open Assistant; take the dataset's file of trees (*.trees.jsonl.gz)")
    yield


@_shape(
    "prompt",
    "`prompt`, `question`, `instruction`, `problem`, `query`, `input`, `text`, ..., or `turns` (MT-Bench: the first)",
    lambda r: _prompt_column(r),
    gives="prompts",
)
def _prompt_alone(row: Row) -> Iterator[Prompted]:
    yield Prompted(read_prompt(row))
