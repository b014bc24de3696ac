"""Admission: sources, dead letters, reconciled counts, limits and splits."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvpo_ray.data import (
    DeadLetters,
    EncodedPair,
    LoadCounts,
    disjoint,
    fingerprint,
    load_demonstrations,
    load_pairs,
    load_prompts,
    refuse_if_too_bad,
    split_by_prompt,
    template_hash,
)
from dvpo_ray.errors import DataError


def pair(i: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} | changes


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def load(source: str, tokenizer: Any, letters: Path | None = None, **options: Any) -> tuple[list[EncodedPair], LoadCounts]:
    limits = {"max_prompt_tokens": 200, "max_answer_tokens": 50} | options
    with DeadLetters(letters) as dead:
        return load_pairs(source, tokenizer, dead_letters=dead, **limits)


def test_every_reason_reaches_the_dead_letters_with_file_and_line(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        pair(0),
        "{broken",
        "[1]",
        pair(3, chosen=""),
        pair(4, rejected="good 4"),
        pair(5, id="x"),
        pair(6, id="x"),
        pair(7, chosen="y" * 99),
    ]
    source = write(tmp_path / "pairs.jsonl", rows)
    Path(source).write_bytes(Path(source).read_bytes() + b'{"prompt": "\xff"}\n')
    pairs, counts = load(source, tokenizer, tmp_path / "dead.jsonl")
    assert [p.row_id for p in pairs] == ["pairs.jsonl:1", "x"]
    assert (counts.read, counts.kept) == (9, 2)
    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    found = {letter["line"]: letter["reason"] for letter in letters}
    assert found == {
        2: "invalid_json",
        3: "not_an_object",
        4: "empty_answer",
        5: "equal_answers",
        7: "duplicate_id",
        8: "too_long",
        9: "bad_utf8",
    }
    assert all(letter["file"] == source for letter in letters)


def test_demonstrations_are_chosen_answers_or_completions(tmp_path: Path, tokenizer: Any) -> None:
    """Only the answer that is taken must fit; one cut short does not end."""
    rows = [pair(0, rejected="y" * 99), {"prompt": "p1", "completion": "z" * 99}, pair(2, chosen="x" * 99), {"prompt": "p3"}]
    source = write(tmp_path / "rows.jsonl", rows)
    limits: dict[str, Any] = {"max_prompt_tokens": 200, "max_answer_tokens": 50}
    with DeadLetters(tmp_path / "dead.jsonl") as dead:
        kept, counts = load_demonstrations(source, tokenizer, dead_letters=dead, **limits)
        cut, _ = load_demonstrations(source, tokenizer, dead_letters=dead, overlong="truncate_answer", **limits)
    assert [tokenizer.decode(row.answer_ids, skip_special_tokens=True) for row in kept] == ["good 0"]
    assert kept[0].answer_ids[-1] == tokenizer.eos_token_id
    assert counts.rejected == {"too_long": 2, "missing_field": 1}
    assert [len(row.answer_ids) for row in cut[1:]] == [50, 50] and cut[1].answer_ids[-1] != tokenizer.eos_token_id


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(content=st.binary(max_size=400))
def test_any_bytes_are_either_kept_or_dead_letters(content: bytes, tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.jsonl"
        path.write_bytes(content)
        try:
            _, counts = load(str(path), tokenizer, Path(folder) / "dead.jsonl")
        except DataError as error:  # its first bytes are those of another kind of file
            assert str(path) in str(error)
            return
        assert counts.read == sum(1 for line in content.split(b"\n") if line.strip())
        assert counts.read == counts.kept + sum(counts.rejected.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    row=st.dictionaries(
        st.sampled_from(["prompt", "chosen", "rejected", "id"]),
        st.recursive(st.none() | st.text(max_size=9) | st.integers(), st.lists),
    )
)
def test_any_json_object_is_either_kept_or_a_dead_letter(row: dict[str, Any], tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, counts = load(write(Path(folder) / "rows.jsonl", [row]), tokenizer)
        assert counts.read == 1 == counts.kept + sum(counts.rejected.values())


def test_sources_give_the_same_rows(tmp_path: Path, tokenizer: Any) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [pair(i, id=str(i)) for i in range(5)]
    plain = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    expected = load(plain, tokenizer)[0]
    assert len(expected) == 5
    for source in (packed, tmp_path / "c.parquet", tmp_path / "saved"):
        assert load(str(source), tokenizer)[0] == expected


def test_cut_gzip_names_the_file_and_line(tmp_path: Path, tokenizer: Any) -> None:
    whole = gzip.compress(b"".join(json.dumps(pair(i)).encode() + b"\n" for i in range(200)))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: damaged or cut short after line \d+"):
        load(str(path), tokenizer)


def test_missing_source(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load("nowhere/pairs.jsonl", tokenizer)


def test_overlong_answers_can_be_truncated(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [pair(0, chosen="y" * 99)])
    pairs, _ = load(source, tokenizer, overlong="truncate_answer")
    assert len(pairs[0].chosen_ids) == 50
    assert pairs[0].chosen_ids[-1] != tokenizer.eos_token_id
    assert pairs[0].rejected_ids[-1] == tokenizer.eos_token_id


def test_prompts_use_the_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.jsonl", [{"prompt": "Hi"}])
    with DeadLetters(None) as dead:
        prompts, _ = load_prompts(source, tokenizer, max_prompt_tokens=100, dead_letters=dead)
    assert tokenizer.decode(prompts[0].prompt_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert len(template_hash(tokenizer)) == 64


def test_too_many_bad_rows_stop_the_run() -> None:
    counts = LoadCounts(read=10, kept=8, rejected={"too_long": 2})
    refuse_if_too_bad(counts, 0.2, "f", Path("dead"))
    with pytest.raises(DataError, match=r"2 of 10 rows \(20\.0%\).*too_long: 2.*dead"):
        refuse_if_too_bad(counts, 0.1, "f", Path("dead"))
    with pytest.raises(DataError, match="it is empty"):
        refuse_if_too_bad(LoadCounts(), 1.0, "f", Path("dead"))


def make(key: str, row: int) -> EncodedPair:
    return EncodedPair(f"{key}/{row}", key, (1, 2), key, (3,), (4,))


@given(keys=st.lists(st.text(max_size=3), min_size=30, max_size=80), seed=st.integers(0, 9))
def test_split_keeps_prompts_together(keys: list[str], seed: int) -> None:
    rows = [make(key, i) for i, key in enumerate(keys)]
    try:
        train, held = split_by_prompt(rows, 0.3, seed)
    except DataError:
        return
    assert not {r.prompt_key for r in train} & {r.prompt_key for r in held}
    assert sorted(r.row_id for r in train + held) == sorted(r.row_id for r in rows)
    assert {r.row_id for r in split_by_prompt(rows[::-1], 0.3, seed)[1]} == {r.row_id for r in held}
    disjoint(train, held)


def test_shared_prompts_are_named() -> None:
    with pytest.raises(DataError, match="1 held-out rows.*'secret'"):
        disjoint([make("secret", 0)], [make("secret", 1), make("other", 2)])


def test_fingerprint_sees_tokens() -> None:
    assert fingerprint([make("a", 0)]) != fingerprint([make("a", 1)])
    assert fingerprint([make("a", 0)]) == fingerprint([make("a", 0)])


def test_demo_data_is_disjoint_and_whole(tokenizer: Any) -> None:
    base = "package:dvpo_ray/demo/data"
    limits = {"max_prompt_tokens": 400, "max_answer_tokens": 600}
    train, counts = load(f"{base}/train_pairs.jsonl.gz", tokenizer, **limits)
    validation, _ = load(f"{base}/validation_pairs.jsonl.gz", tokenizer, **limits)
    assert counts.bad_share == 0
    with DeadLetters(None) as dead:
        prompts, _ = load_prompts(f"{base}/train_prompts.jsonl.gz", tokenizer, max_prompt_tokens=400, dead_letters=dead)
        test, _ = load_prompts(f"{base}/test_prompts.jsonl.gz", tokenizer, max_prompt_tokens=400, dead_letters=dead)
    for a, b in ((train, validation), (train, test), (prompts, test), (prompts, validation), (validation, test)):
        disjoint(a, b)


def test_rows_say_what_they_have_in_common(tmp_path: Path, tokenizer: Any) -> None:
    rows = [pair(0) | {"group": "sea"}, pair(1) | {"group": 7}, pair(2), pair(3) | {"group": None}, pair(4) | {"group": ["sea"]}]
    pairs, counts = load(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert [one.group for one in pairs] == ["sea", "7", None, None]
    assert [one.kin for one in pairs] == ["sea", "7", pairs[2].prompt_key, pairs[3].prompt_key]
    assert counts.rejected == {"wrong_type": 1}
    assert fingerprint(pairs) == fingerprint([replace(one, group=None) for one in pairs]), "no part of what is trained on"


def test_the_demos_rows_say_their_subjects(tokenizer: Any) -> None:
    """63 held-out subjects, each asked for in two ways."""
    with DeadLetters(None) as dead:
        source = "package:dvpo_ray/demo/data/test_prompts.jsonl.gz"
        test, _ = load_prompts(source, tokenizer, max_prompt_tokens=400, dead_letters=dead)
    assert len(test) == 126
    assert sorted(Counter(prompt.kin for prompt in test).values()) == [2] * 63
    assert all(prompt.group is not None and prompt.group in prompt.prompt_text for prompt in test)
