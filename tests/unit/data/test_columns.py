"""What rows hold beside what is read of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dvpo_ray.data import DeadLetters, EncodedPrompt, LoadCounts, Reading, fingerprint, load_prompts
from dvpo_ray.data.columns import MOST_BYTES, NO_JSON, TOO_LARGE, ReadRow
from dvpo_ray.rollouts.base import PlanContext, make_plan
from tests.support.engines import settings


def load(path: Path, tokenizer: Any, *rows: dict[str, Any], **reading: Any) -> tuple[list[EncodedPrompt], LoadCounts]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with DeadLetters(None) as dead:
        return load_prompts(str(path), tokenizer, max_prompt_tokens=200, dead_letters=dead, reading=Reading(**reading))


def test_prompts_keep_the_other_columns_of_their_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"question": "what is 2+2?", "answer": "it is\n#### 4", "level": 3, "tags": ["a", "b"], "extra": {"index": 1}, "id": "x"},
        {"question": "and 3+3?", "answer": "6", "level": None, "system": "be brief"},
    ]
    prompts, counts = load(tmp_path / "rows.jsonl", tokenizer, *rows)
    assert prompts[0].columns == {"answer": "it is\n#### 4", "level": 3, "tags": ["a", "b"], "extra": {"index": 1}, "id": "x"}
    assert prompts[1].columns == {"answer": "6"}, "empty ones are none, and the system message was read"
    assert not counts.notes


def test_what_was_read_as_prompt_or_answer_is_not_kept(tmp_path: Path, tokenizer: Any) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    prompts, _ = load(tmp_path / "rows.jsonl", tokenizer, {"messages": talk, "source": "web"})
    assert prompts[0].columns == {"source": "web"}
    prompts, _ = load(tmp_path / "rows.jsonl", tokenizer, {"meta": {"ask": "hi", "right": 5}}, columns={"prompt": "meta.ask"})
    assert prompts[0].columns == {"meta": {"ask": "hi", "right": 5}}


def test_columns_change_no_fingerprint_and_reach_the_requests(tmp_path: Path, tokenizer: Any) -> None:
    with_them, _ = load(tmp_path / "rows.jsonl", tokenizer, {"prompt": "p", "id": "a", "answer": 4})
    without, _ = load(tmp_path / "rows.jsonl", tokenizer, {"prompt": "p", "id": "a"})
    assert fingerprint(with_them) == fingerprint(without) and with_them == without
    plan = make_plan(PlanContext(with_them, settings(prompts_per_step=1, answers_per_prompt=1), 0, lambda section: []))
    (request,) = plan.requests(0)
    assert request.columns["answer"] == 4


def test_rows_keep_at_most_so_much_and_say_what_they_left_out(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "p", "before": 1, "page": "x" * MOST_BYTES, "half": "y" * (MOST_BYTES // 2), "more": "z" * (MOST_BYTES // 2)}
    prompts, counts = load(tmp_path / "rows.jsonl", tokenizer, row | {"after": 2}, {"prompt": "q", "after": 2})
    assert {name: str(value)[:1] for name, value in prompts[0].columns.items()} == {"before": "1", "half": "y", "after": "2"}
    assert counts.notes == {TOO_LARGE: 2} and counts.kept == 2
    assert "columns left out of rows that would keep more than 64 KiB: 2" in counts.said("prompts")


def test_what_json_cannot_hold_is_left_out_and_counted() -> None:
    row = ReadRow({"prompt": "p", "image": b"x", "nan": float("nan"), "inf": [float("inf")], "kept": [1, None]})
    assert row["prompt"] == "p"
    row.settle()
    assert row.get("kept") == [1, None], "what is asked for later is not what was read"
    counted: Counter[str] = Counter()
    assert row.others(counted) == {"kept": [1, None]} and counted == {NO_JSON: 2}
