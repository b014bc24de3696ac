"""Datasets of any content: every row is kept or a dead letter, or the file is refused by name."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dvpo_ray.data import DeadLetters, LoadCounts, load_demonstrations, load_pairs, load_preferences, load_prompts, opening
from dvpo_ray.errors import DataError
from tests.support.fuzzing import ODD_TEXT, damaged, examples, nested, odd_json

STRICT = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}{{ raise_exception('role ' + m['role']) }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)
ROWS = [{"id": i, "prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


LOADERS: dict[str, Callable[..., tuple[list[Any], LoadCounts]]] = {
    "pairs": partial(load_pairs, max_answer_tokens=50),
    "demonstrations": partial(load_demonstrations, max_answer_tokens=50),
    "prompts": load_prompts,
}


def load(path: Path, tokenizer: Any, kind: str = "pairs") -> tuple[LoadCounts, list[dict[str, Any]]]:
    """The counts, and the dead letters; the books balance."""
    letters = path.parent / "dead.jsonl"
    with DeadLetters(letters) as dead:
        rows, counts = LOADERS[kind](str(path), tokenizer, max_prompt_tokens=99, dead_letters=dead)
    found = [json.loads(line) for line in letters.read_text().splitlines()] if letters.exists() else []
    assert counts.read == len(rows) + len(found)
    assert counts.kept == len(rows)
    assert all(letter["file"] == str(path) and letter["line"] >= 1 and letter["reason"] for letter in found)
    letters.unlink(missing_ok=True)
    return counts, found


def load_lines(lines: list[str], tokenizer: Any, kind: str = "pairs") -> tuple[LoadCounts, list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return load(path, tokenizer, kind)


def texts() -> st.SearchStrategy[Any]:
    turn = st.fixed_dictionaries(
        {"role": st.sampled_from(("user", "assistant", "system", "tool", "")), "content": st.text(max_size=9)}
    )
    return st.text(max_size=30) | st.sampled_from(ODD_TEXT) | st.lists(turn | odd_json(), max_size=4) | odd_json()


@examples(120)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(("prompt", "chosen", "rejected", "completion", "id", "turns", "question")), texts()),
        max_size=4,
    )
)
@example(rows=[{"prompt": "\ud800", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "\udfff", "rejected": "b"}])
@example(rows=[{"prompt": "p", "completion": "\ud800"}, {"prompt": "p", "completion": "a"}])
@example(rows=[{"id": "\ud800", "prompt": "p", "chosen": "a", "rejected": "b"}])
@example(rows=[{"id": [1], "prompt": "p", "chosen": "a", "rejected": "b"}])
def test_rows_of_any_content_are_kept_or_dead_letters(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    for kind in LOADERS:
        counts, _ = load_lines([json.dumps(row) for row in rows], tokenizer, kind)
        assert counts.read == len(rows)


SOME = st.sampled_from(("a", "b", "", 0, 1, 2, True, False, None, "prompter", "assistant", float("nan"))) | texts()


@examples(120)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"message_id": SOME, "parent_id": SOME, "text": SOME, "role": SOME},
            optional=dict.fromkeys(("rank", "deleted", "review_result", "message_tree_id"), SOME),
        )
        | st.dictionaries(st.sampled_from(("prompt", "completion", "label", "score", "responses", "scores", "winner")), SOME),
        max_size=7,
    )
)
def test_messages_and_labels_of_any_content_are_kept_or_dead_letters(rows: list[dict[str, Any]], tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        for load_some in (load_preferences, LOADERS["pairs"]):
            letters = Path(folder) / "dead.jsonl"
            with DeadLetters(letters) as dead:
                found, counts = load_some(str(path), tokenizer, max_prompt_tokens=99, max_answer_tokens=50, dead_letters=dead)
            lost = letters.read_text().splitlines() if letters.exists() else []
            letters.unlink(missing_ok=True)
            assert counts.read == len(rows) == counts.kept + len(lost)
            assert len(found) == counts.made + sum(counts.labelled.values())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": ' + "9" * 5000 + "}", "invalid_json"),
        (nested(100_000), "invalid_json"),
        ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "bad_utf8"),
        ('{"prompt": "p", "chosen": "\\udc00", "rejected": "b"}', "bad_utf8"),
        ('{"id": "\\udc00", "prompt": "p", "chosen": "a", "rejected": "b"}', "bad_utf8"),
        ('{"id": {}, "prompt": "p", "chosen": "a", "rejected": "b"}', "wrong_type"),
        ('{"prompt": NaN, "chosen": "a", "rejected": "b"}', "wrong_type"),
        ('{"prompt": [{"role": "\\ud800", "content": "x"}], "chosen": "a", "rejected": "b"}', "bad_utf8"),
    ],
)
def test_odd_lines_have_their_reason(line: str, reason: str, tokenizer: Any) -> None:
    _, (letter,) = load_lines([line], tokenizer)
    assert (letter["line"], letter["reason"]) == (1, reason)


def test_rows_at_the_limit_of_the_stack_are_dead_letters(tokenizer: Any) -> None:
    """Each depth is read or not; those that are just read cannot be shown in a place with less stack left."""
    lines = [f'{{"chosen": {nested(depth)}}}' for depth in range(700, 1000)]
    counts, letters = load_lines(lines, tokenizer)
    assert counts.read == len(letters) == len(lines)
    assert {letter["reason"] for letter in letters} == {"missing_field", "invalid_json"} | {"wrong_type"} & {
        letter["reason"] for letter in letters
    }


def test_a_conversation_that_the_chat_template_refuses_is_a_dead_letter(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", STRICT)
    turns = [{"role": "narrator", "content": "s"}, {"role": "user", "content": "u"}]
    counts, (letter,) = load_lines([json.dumps({"prompt": turns}), json.dumps({"prompt": "p"})], tokenizer, "prompts")
    assert (counts.kept, letter["reason"]) == (1, "bad_conversation")
    assert "role narrator" in letter["detail"]


def test_a_line_too_long_to_be_held_is_a_dead_letter_and_the_next_is_read(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "MAX_LINE", 1000)
    path = tmp_path / "long.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "' + b" " * 10**6 + b'"}\n' + LINES))
    counts, (letter,) = load(path, tokenizer)
    assert (counts.read, counts.kept) == (41, 40)
    assert (letter["line"], letter["reason"]) == (1, "too_long")


@examples(60)
@given(content=damaged(LINES))
def test_damaged_lines(content: bytes, tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(content)
        try:
            counts, _ = load(path, tokenizer)
        except DataError as error:  # one byte more and it is an array, or another encoding
            assert str(path) in str(error) and not content.startswith(b'{"id"')
            return
        assert counts.read == sum(1 for line in content.split(b"\n") if line.strip())


@examples(100)
@given(content=damaged(gzip.compress(LINES, mtime=0)) | st.binary(max_size=99))
def test_a_damaged_gzip_is_refused_by_name(content: bytes, tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl.gz"
        path.write_bytes(content)
        try:
            counts, letters = load(path, tokenizer)
        except DataError as error:
            assert str(path) in str(error)
        else:  # what is not protected: the name, the time and the like in the header; text is read as such
            assert (counts.read, letters) in ((40, []), (0, [])) or (b"\0" not in content and counts.kept == 0)


def parquet(rows: list[dict[str, Any]], checksums: bool = True) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, write_page_checksum=checksums)
    return sink.getvalue().to_pybytes()


@examples(100)
@given(content=damaged(parquet(ROWS)) | damaged(parquet(ROWS, checksums=False)) | st.binary(max_size=99))
def test_a_damaged_parquet_is_refused_by_name_or_its_rows_are_looked_at(content: bytes, tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        path.write_bytes(content)
        try:
            load(path, tokenizer)
        except DataError as error:
            assert str(path) in str(error)


@examples(40)
@given(data=st.data())
def test_parquet_columns_of_any_type(data: st.DataObject, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "text": pa.array(["a", None, "c"]),
        "bytes": pa.array([b"a", b"\xff", None]),
        "no text": pa.array([b"a", b"\xff", b"c"]).view(pa.string()),
        "numbers": pa.array([1, 2, None]),
        "nan": pa.array([float("nan"), 1.0, None]),
        "dates": pa.array([0, 2**62, None], pa.timestamp("us")),
        "turns": pa.array([[{"role": "user", "content": "x"}], [], None]),
        "map": pa.array([[("role", "user")], [], None], pa.map_(pa.string(), pa.string())),
    }
    names = ("id", "prompt", "chosen", "rejected", "turns")
    chosen = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(sorted(columns)), min_size=1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(pa.table({name: columns[kind] for name, kind in chosen.items()}), path)
        for loader in LOADERS:
            counts, _ = load(path, tokenizer, loader)
            assert counts.read == 3


def test_a_parquet_row_that_is_no_text_is_a_dead_letter(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": pa.array([b"a", b"\xff", b"c"]).view(pa.string())}), path)
    counts, (letter,) = load(path, tokenizer, "prompts")
    assert (counts.kept, letter["line"], letter["reason"]) == (2, 2, "bad_utf8")


def test_a_parquet_with_a_column_twice_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="more than one column is called 'prompt'"):
        load(tmp_path / "x.parquet", tokenizer)


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json", "data-00000-of-00001.arrow"])
@examples(12)
@given(data=st.data())
def test_a_damaged_saved_dataset_is_refused_by_name(name: str, tokenizer: Any, data: st.DataObject) -> None:
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved"
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
        (path / name).write_bytes(data.draw(damaged((path / name).read_bytes())))
        try:
            load(path, tokenizer)
        except DataError as error:
            assert str(path) in str(error)


def test_a_saved_dataset_leads_to_no_file_outside(tmp_path: Path, tokenizer: Any) -> None:
    import datasets

    path = tmp_path / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    (path / "data-00000-of-00001.arrow").rename(tmp_path / "outside.arrow")
    state = json.loads((path / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../outside.arrow"
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="'../outside.arrow' points outside the folder"):
        load(path, tokenizer)


@examples(60)
@given(
    source=st.builds(
        lambda a, b: f"{a}{b}", st.sampled_from(("package:", "package:dvpo_ray/", "./", "/", "~")), st.text(max_size=9)
    )
)
@example(source="./" + "x" * 5000)
@example(source="/\x00.jsonl")
@example(source="package:")
@example(source="package:.x/y")
def test_any_name_of_a_source_is_found_or_refused(source: str, tokenizer: Any) -> None:
    with DeadLetters(None) as dead, pytest.raises(DataError, match="'"):
        load_prompts(source, tokenizer, max_prompt_tokens=9, dead_letters=dead)
        raise DataError("'a source that is there'")


@examples(150)
@given(
    name=st.sampled_from(("a.json", "a.jsonl", "a.csv", "a.tsv", "a.json.gz")),
    content=damaged(json.dumps(ROWS[:3]).encode())
    | damaged(json.dumps({"prompt": ["a", "b"], "chosen": ["c", "d"]}, indent=1).encode())
    | damaged(b'prompt,chosen,rejected\na,b,c\n"d\ne",f,g\n')
    | st.binary(max_size=60),
)
def test_files_of_any_content_and_name_are_read_or_refused_by_name(name: str, content: bytes, tokenizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for kind in LOADERS:
            try:
                load(path, tokenizer, kind)
            except DataError as error:
                assert str(path) in str(error)
