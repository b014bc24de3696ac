"""Files and templates made to exhaust memory, disk or patience."""

from __future__ import annotations

import gzip
import json
import resource
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dvpo_ray.data import DeadLetters, chat_template, dead_letters, table_rows
from dvpo_ray.data.chat_template import ignored_arguments, templated, with_arguments
from dvpo_ray.data.files import file_rows
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.reasons import Reason
from dvpo_ray.errors import DataError, ModelError

MIB = 2**20


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def written(path: Path, column: pa.Array, **options: Any) -> Path:
    schema = pa.schema([("prompt", column.type)])
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False, **options) as writer:
        writer.write_table(pa.Table.from_arrays([column], schema=schema))
    return path


def test_a_text_that_a_few_bytes_give_to_every_row_is_never_there_for_all_of_them(tmp_path: Path) -> None:
    rows, text = 65_536, "a" * 100_000
    path = written(tmp_path / "rows.parquet", pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text])))
    before = peak_bytes()
    assert path.stat().st_size < 1000
    assert sum(raw.row == {"prompt": text} for raw in file_rows(path)) == rows
    # 6.5 GB of text: no more is there at once than the limit, and what pyarrow itself needs.
    assert peak_bytes() - before < 3 * table_rows.MOST_BYTES


def test_rows_are_the_same_however_few_are_unpacked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table(
        {
            "text": pa.array(["a", None, "b" * 50] * 30, pa.large_string()),
            "turns": pa.array([[{"role": "user", "content": "x" * 30}], [], None] * 30),
            "tags": pa.array([["q", "w"], None, []] * 30),
            "scores": pa.array([{"a": 1.0}, None, {"a": 2.0}] * 30),
            "number": pa.array(range(90)),
            "data": pa.array([b"\x01", None, b"2"] * 30),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=40)
    assert [raw.row for raw in file_rows(tmp_path / "rows.parquet")] == table.to_pylist()
    monkeypatch.setattr(table_rows, "MOST_BYTES", 4000)
    found = list(file_rows(tmp_path / "rows.parquet"))
    assert [raw.row for raw in found] == table.to_pylist() and [raw.line for raw in found] == list(range(1, 91))
    monkeypatch.setattr(table_rows, "MOST_BYTES", 700)
    assert {raw.problem for raw in file_rows(tmp_path / "rows.parquet")} == {None, Reason.TOO_LONG}


def test_a_column_that_unpacks_as_no_data_do_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rows, "MOST_BYTES", MIB)
    path = written(tmp_path / "rows.parquet", pa.array(["a" * 4 * MIB]), use_dictionary=False)
    with pytest.raises(DataError, match=r"column 'prompt' would unpack from [\d,]+ bytes to 4,19"):
        list(file_rows(path))


def test_dead_letters_end_at_a_number_of_rows_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MOST_LETTERS", 5)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(b"[]\n" * 1000))
    with DeadLetters(tmp_path / "dead.jsonl") as letters:
        for raw in file_rows(packed):
            letters.add(raw, None, raw.problem or Reason.WRONG_TYPE, raw.detail)
        letters.add(RawRow("f", 1, {}), None, Reason.TIE, "")
    lines = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and lines[-1] == {"rows_not_written": {"not_an_object": 995, "tie": 1}}
    assert letters.counts == {Reason.NOT_AN_OBJECT: 1000, Reason.TIE: 1}


TURNS = [{"role": "user", "content": "hello"}]
SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
LONG = "{% for a in range(9999) %}xxxxxxxxxxxxxxxx{% endfor %}"


@pytest.mark.parametrize(("template", "problem"), [(SLOW, "took longer than 0.2 s"), (LONG, "wrote more than 1,000 characters")])
def test_a_template_that_takes_too_much_is_the_models_fault(
    template: str, problem: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "MOST_S", 0.2)
    monkeypatch.setattr(chat_template, "MOST_WRITTEN", 1000)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(ModelError, match=f"the chat template of the model {problem} for a conversation of"):
        templated(tokenizer, TURNS, tokenize=False)
    with pytest.raises(ModelError, match="mend chat_template in its folder"):
        ignored_arguments(with_arguments(tokenizer, {"enable_thinking": True}))
    with_arguments(tokenizer, {})
