"""Questions and answers in the files of public benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.data.messages import Message
from dvpo_ray.errors import ConfigError, DataError
from dvpo_ray.judging.files import read_answers, read_questions, refuse_to_replace, write_rows
from dvpo_ray.judging.formats import FORMATS, format_named, markdown_counts

QUESTIONS: dict[str, dict[str, Any]] = {
    "mt-bench": {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Now shorter."], "reference": ["x", "y"]},
    "alpaca-eval": {"instruction": "Name a sea.", "output": "Black", "generator": "text_davinci_003", "dataset": "koala"},
    "arena-hard": {"uid": "2edbb5f3", "category": "hard_prompt", "subcategory": "coding", "prompt": "Sort a list."},
    "jsonl": {"id": 7, "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
}
ANSWERS = {"mt-bench": ["A long\npoem", "Ä poem"], "alpaca-eval": [""], "arena-hard": ["**1** x"], "jsonl": ["Because."]}
# Without what differs each time: ids and times.
WRITTEN: dict[str, dict[str, Any]] = {
    "mt-bench": {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["A long\npoem", "Ä poem"]}]},
    "alpaca-eval": {"instruction": "Name a sea.", "output": "", "generator": "m", "dataset": "koala"},
    "arena-hard": {
        "uid": "2edbb5f3",
        "model": "m",
        "messages": [{"role": "user", "content": "Sort a list."}, {"role": "assistant", "content": {"answer": "**1** x"}}],
        "metadata": {
            "token_len": 4,
            "header_count": dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), 0),
            "list_count": {"ordered": 0, "unordered": 0},
            "bold_count": {"**": 1, "__": 0},
        },
    },
    "jsonl": {"id": "7", "model": "m", "prompt": "system: Be brief.\n\nuser: Why?", "answer": "Because."},
}
ASKED = {
    "mt-bench": None,
    "alpaca-eval": ("Name a sea.",),
    "arena-hard": ("Sort a list.",),
    "jsonl": (WRITTEN["jsonl"]["prompt"],),
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_answers_are_written_as_the_benchmark_reads_them(name: str, tmp_path: Path) -> None:
    form = format_named(name)
    question = read_questions(write(tmp_path / "questions.jsonl", QUESTIONS[name]), form)[0]
    row = form.written(question, ANSWERS[name], "m", [4] * len(ANSWERS[name]))
    assert {key: value for key, value in row.items() if key not in ("answer_id", "ans_id", "tstamp")} == WRITTEN[name]
    out = tmp_path / "answers"
    write_rows(out, [row], form)
    assert isinstance(json.loads(out.read_text()), list) == (name == "alpaca-eval")
    answered = read_answers(out, form)[0]
    assert (answered.key, answered.asked, answered.answers) == (
        question.key,
        ASKED.get(name, question.asked),
        tuple(ANSWERS[name]),
    )


def test_turns_are_asked_one_after_the_other(tmp_path: Path) -> None:
    question = read_questions(write(tmp_path / "q.jsonl", QUESTIONS["mt-bench"]), format_named("mt-bench"))[0]
    assert question.turns == ((Message("user", "Write a poem."),), (Message("user", "Now shorter."),))
    assert question.asked == ("Write a poem.", "Now shorter.")


def test_a_json_list_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "alpaca_eval.json"
    path.write_text(json.dumps([QUESTIONS["alpaca-eval"], QUESTIONS["alpaca-eval"] | {"instruction": "And a lake?"}], indent=2))
    assert [one.key for one in read_questions(path, format_named("alpaca-eval"))] == ["Name a sea.", "And a lake?"]


def test_equal_questions_without_ids_are_told_apart_by_their_order(tmp_path: Path) -> None:
    form = format_named("alpaca-eval")
    path = write(tmp_path / "a.jsonl", *(QUESTIONS["alpaca-eval"] | {"output": output} for output in ("Black", "Red", "Dead")))
    assert [(one.key, one.answers) for one in read_answers(path, form)] == [
        ("Name a sea.", ("Black",)),
        ("Name a sea. (2)", ("Red",)),
        ("Name a sea. (3)", ("Dead",)),
    ]
    taken = write(tmp_path / "b.jsonl", *(QUESTIONS["alpaca-eval"] | {"instruction": f"Sea{more}"} for more in ("", "", " (2)")))
    with pytest.raises(DataError, match=r"b\.jsonl, row 3: 'Sea \(2\)' is also how an earlier row is known"):
        read_answers(taken, form)
    again = [form.written(question, ["x"], "m", [1])["instruction"] for question in read_questions(path, form)]
    assert again == ["Name a sea."] * 3


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mt-bench", {"turns": ["x"]}, "row 1: 'question_id' is missing, expected text or an integer"),
        ("mt-bench", {"question_id": True, "turns": ["x"]}, "'question_id' is 'True'"),
        ("mt-bench", {"question_id": 1, "turns": "x"}, "'turns' is 'x', expected a list of texts"),
        ("alpaca-eval", {"instruction": " "}, "'instruction' is ' ', expected text"),
        ("arena-hard", QUESTIONS["mt-bench"], "'uid' is missing.*by --format"),
        ("jsonl", {"said": "x"}, "none of 'prompt', 'question', 'turns'"),
        ("jsonl", 5, "row 1: a JSON int, expected an object"),
    ],
)
def test_a_bad_question_is_named(name: str, row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"q\.jsonl.*{message}"):
        read_questions(write(tmp_path / "q.jsonl", row), format_named(name))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mt-bench", WRITTEN["mt-bench"] | {"choices": []}, r"'choices' is '\[\]'"),
        ("alpaca-eval", {"instruction": "x", "output": None}, "'output' is missing"),
        ("arena-hard", {"uid": "1", "messages": [{"content": "x"}]}, "'messages' is"),
        ("arena-hard", {"uid": "1", "messages": [{"content": "x"}, {"content": {"text": "y"}}]}, "'answer' is missing"),
    ],
)
def test_a_bad_answer_is_named(name: str, row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_answers(write(tmp_path / "a.jsonl", row), format_named(name))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    form = format_named("jsonl")
    for content, message in (
        ("", "holds no rows"),
        ('[{"prompt": "x"}', "begins as a JSON list and is none"),
        ("[1]", "row 1: no JSON object"),
        ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n', "row 2: an earlier row has the id 'a' too"),
        ('{"prompt": "\\ud800"}', "row 1: .*surrogates not allowed"),
    ):
        (tmp_path / "q.json").write_text(content)
        with pytest.raises(DataError, match=message):
            read_questions(tmp_path / "q.json", form)
    with pytest.raises(DataError, match="nowhere.json cannot be read"):
        read_questions(tmp_path / "nowhere.json", form)
    with pytest.raises(ConfigError, match="is not written over"):
        refuse_to_replace(tmp_path / "q.json")
    for path in (tmp_path / "q.json" / "out.jsonl", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="cannot be written: .*; give --out another name"):
            refuse_to_replace(path)
    refuse_to_replace(tmp_path / "new" / "out.jsonl")
    assert list((tmp_path / "new").iterdir()) == [], "nothing is left by the look"
    with pytest.raises(ConfigError, match="unknown format 'mtbench': use one of mt-bench"):
        format_named("mtbench")


def test_markdown_outside_code_blocks_is_counted() -> None:
    text = "# One\n## Two\n- a\n* b\n 1. c\n**d** and __e__, **f**\n```\n# no\n- no\n**no**\n```\n"
    found = markdown_counts(text)
    assert found["header_count"] == {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0}
    assert found["list_count"] == {"ordered": 1, "unordered": 2}
    assert found["bold_count"] == {"**": 2, "__": 1}
