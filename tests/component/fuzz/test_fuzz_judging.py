"""Files of questions, answers and verdicts, and replies of a judge, of any content: read, or refused by name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.errors import DataError
from dvpo_ray.judging.endpoint import MalformedReplyError, read_completion
from dvpo_ray.judging.files import read_answers, read_questions
from dvpo_ray.judging.formats import FORMATS
from dvpo_ray.judging.verdict_file import Judgement, VerdictFile
from tests.support.fuzzing import altered, damaged, examples
from tests.unit.judging.test_benchmark_formats import QUESTIONS, WRITTEN

JUDGEMENTS = [
    Judgement(
        key=key, question="q", verdict=verdict, reply="Ä", finish_reason="stop", input_tokens=3, output_tokens=1, max_tokens=9
    )
    for key, verdict in (("x", "A"), ("y", None))
]
COMPLETION = {
    "choices": [{"message": {"content": "[[A]]"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


@pytest.mark.parametrize("name", FORMATS)
@examples(150)
@given(data=st.data())
def test_altered_questions_and_answers(name: str, data: st.DataObject) -> None:
    rows = data.draw(st.sampled_from([QUESTIONS, WRITTEN]))
    tree = data.draw(altered([rows[name]]))
    lines = "".join(json.dumps(row) + "\n" for row in (tree if isinstance(tree, list) else [tree]))
    content = data.draw(st.sampled_from([json.dumps(tree), lines]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_text(content)
        for read in (read_questions, read_answers):
            try:
                found = read(path, FORMATS[name])
            except DataError as error:
                assert str(path) in str(error)
            else:
                assert all(one.key.encode() for one in found)


@examples(200)
@given(data=st.data())
def test_damaged_verdicts(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "verdicts.jsonl"
        with VerdictFile(path) as file:
            for judgement in JUDGEMENTS:
                file.add(judgement)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        try:
            with VerdictFile(path) as file:
                assert {judgement.verdict for judgement in file.known.values()} <= {"A", "B", "C", None}
                file.add(JUDGEMENTS[0])
        except DataError as error:
            assert str(path) in str(error)
        else:
            with VerdictFile(path) as again:
                assert again.known["x"] == JUDGEMENTS[0], "what was added to what is left can be read"


@examples(300)
@given(data=st.data())
def test_altered_replies_can_be_kept_and_read_again(data: st.DataObject) -> None:
    content = json.dumps(data.draw(altered(COMPLETION))).encode()
    try:
        reply = read_completion(data.draw(st.sampled_from([content, content[:-9]])))
    except MalformedReplyError:
        return
    counts = {"input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens}
    kept = Judgement(
        key="x", question="q", verdict=None, reply=reply.text, finish_reason=reply.finish_reason, max_tokens=9, **counts
    )
    with tempfile.TemporaryDirectory() as folder:
        with VerdictFile(Path(folder) / "verdicts.jsonl") as file:
            file.add(kept)
        with VerdictFile(Path(folder) / "verdicts.jsonl") as file:
            assert file.known == {"x": kept}
