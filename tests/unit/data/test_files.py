"""Kinds of files: each is read to the last row, or refused with what to do. `docs/datasets.md` holds the same table."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dvpo_ray.data.reasons import Reason
from dvpo_ray.data.sources import iter_raw_rows
from dvpo_ray.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
ROWS = [
    {"prompt": "What is a caf\u00e9?", "chosen": 'A place,\nwith "coffee".', "rejected": "\u4e0d"},
    {"prompt": "And tea; a\tleaf?", "chosen": "Yes.", "rejected": "No."},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TEXT = LINES.encode()
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
BY_NUMBER = {name: dict(zip("01", column, strict=True)) for name, column in COLUMNS.items()}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
UTF16 = LINES.encode("utf-16-le")


def table(delimiter: str = ",", **options: Any) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter, **options)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def as_json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode()


@dataclass(frozen=True)
class Kind:
    """A kind of file: what it is called in the documentation, a file of it, and the remedy where it is refused."""

    what: str
    name: str
    content: bytes | Callable[[], bytes]
    remedy: str = ""

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.write_bytes(self.content() if callable(self.content) else self.content)
        return path

    def line(self) -> str:
        """Its line of the documentation's table."""
        return f"| {self.what} | {f'refused: {self.remedy}' if self.remedy else 'read'} |"


KINDS = (
    Kind("JSON lines: `.jsonl`", "a.jsonl", TEXT),
    Kind("JSON lines: `.ndjson`", "a.ndjson", TEXT),
    Kind("JSON lines: `.jsonlines`", "a.jsonlines", TEXT),
    Kind("JSON lines: `.json`", "a.json", TEXT),
    Kind("endings in capitals: `.JSONL`", "A.JSONL", TEXT),
    Kind("gzip: `.jsonl.gz`", "a.jsonl.gz", gzip.compress(TEXT)),
    Kind("gzip in two parts, put one after the other", "a.jsonl.gz", gzip.compress(TEXT[:50]) + gzip.compress(TEXT[50:])),
    Kind("gzip under a plain name", "a.jsonl", gzip.compress(TEXT)),
    Kind("plain text under a name with `.gz`", "a.jsonl.gz", TEXT),
    Kind("UTF-8 with a byte-order mark", "a.jsonl", codecs.BOM_UTF8 + TEXT),
    Kind("the same, packed by gzip", "a.jsonl.gz", gzip.compress(codecs.BOM_UTF8 + TEXT)),
    Kind("UTF-16 (LE) with a byte-order mark", "a.jsonl", codecs.BOM_UTF16_LE + UTF16),
    Kind("UTF-16 (BE) with a byte-order mark", "a.jsonl", codecs.BOM_UTF16_BE + LINES.encode("utf-16-be")),
    Kind("UTF-32 with a byte-order mark", "a.jsonl", codecs.BOM_UTF32_LE + LINES.encode("utf-32-le")),
    Kind("lines that end with CR LF, blank lines, no end of the last line", "a.jsonl", TEXT.replace(b"\n", b"\r\n\r\n").rstrip()),
    Kind("`.json`: an array of objects", "a.json", as_json(ROWS)),
    Kind("`.json`: the same, indented", "a.json", as_json(ROWS, 2)),
    Kind("`.json.gz`: an array of objects", "a.json.gz", gzip.compress(as_json(ROWS))),
    Kind("`.json`: an object of columns, lists of one length", "a.json", as_json(COLUMNS)),
    Kind("`.json`: columns by the rows' numbers (`DataFrame.to_json()`)", "a.json", as_json(BY_NUMBER)),
    Kind('`.json`: rows by a key (`to_json(orient="index")`)', "a.json", as_json(dict(zip("xy", ROWS, strict=True)), 1)),
    Kind("indented objects, one after the other (`jq .`)", "a.json", b"\n".join(as_json(row, 2) for row in ROWS)),
    Kind("an array of objects that is called `.jsonl`", "a.jsonl", as_json(ROWS, 2)),
    Kind("`.csv` with a first row of names", "a.csv", table().encode()),
    Kind(
        "`.csv` with semicolons and a byte-order mark, as spreadsheets write it", "a.csv", codecs.BOM_UTF8 + table(";").encode()
    ),
    Kind("`.csv.gz`", "a.csv.gz", gzip.compress(table().encode())),
    Kind("`.tsv`", "a.tsv", table("\t").encode()),
    Kind("`.tsv` in UTF-16 with a byte-order mark", "a.tsv", codecs.BOM_UTF16_LE + table("\t").encode("utf-16-le")),
    Kind("`.parquet`", "a.parquet", parquet),
    Kind("Parquet under another name", "a.json", parquet),
    Kind("a Git LFS pointer called `.parquet`", "a.parquet", POINTER, "`git lfs pull` in its repository fetches that"),
    Kind("a Git LFS pointer called `.jsonl.gz`", "a.jsonl.gz", POINTER, "`git lfs pull` in its repository fetches that"),
    Kind("UTF-16 without a byte-order mark", "a.jsonl", UTF16, "convert it by `iconv -f UTF-16LE -t UTF-8`"),
    Kind("gzip within gzip", "a.jsonl.gz", gzip.compress(gzip.compress(TEXT)), "run `gunzip`"),
    Kind("gzip that is cut short", "a.jsonl.gz", gzip.compress(TEXT)[:-9], "copy or download it again"),
    Kind("`.gz` that is neither gzip nor text", "a.jsonl.gz", b"\0" + gzip.compress(TEXT), "copy or download it again"),
    Kind("UTF-16 that is cut short", "a.jsonl", codecs.BOM_UTF16_LE + UTF16[:-1], "copy or download it again"),
    Kind("`.zst`", "a.jsonl.zst", b"\x28\xb5\x2f\xfd", "unpack it by `zstd -d`"),
    Kind("zstd under a plain name", "a.jsonl", b"\x28\xb5\x2f\xfd\x24\x00", "unpack it by `zstd -d`"),
    Kind("`.bz2`", "a.jsonl.bz2", b"BZh91AY&SY", "unpack it by `bunzip2`"),
    Kind("`.xz`", "a.jsonl.xz", b"\xfd7zXZ\0", "unpack it by `unxz`"),
    Kind("`.zip`", "a.zip", b"PK\x03\x04", "unpack it"),
    Kind("`.parquet.gz`", "a.parquet.gz", lambda: gzip.compress(parquet()), "unpack it by `gunzip`"),
    Kind("a damaged Parquet file", "a.parquet", lambda: parquet()[:-9], "copy or download it again"),
    Kind("`.arrow`", "a.arrow", b"ARROW1\0\0", "save it as .parquet, or give the folder that `save_to_disk` wrote"),
    Kind("`.xlsx`", "a.xlsx", b"PK\x03\x04", "save its sheet as .csv"),
    Kind("`.pkl`", "a.pkl", b"\x80\x04", "save it as .jsonl or .parquet; pickles are not loaded, for they can run any code"),
    Kind("`.txt`", "a.txt", TEXT, "write one JSON object a line, as .jsonl"),
    Kind(
        "any other ending", "a.dat", TEXT, "use .jsonl, .ndjson, .jsonlines, .json, .csv, .tsv (each also with .gz) or .parquet"
    ),
    Kind("a web page that shows the data", "a.jsonl", b"\n<!DOCTYPE html><html>", "download the file itself"),
    Kind("an array that is cut short", "a.json", as_json(ROWS)[:-20], "mend it there, or write the file again"),
    Kind("an array without its closing bracket", "a.json", as_json(ROWS)[:-1], "mend it there, or write the file again"),
    Kind("rows under a key", "a.json", as_json({"data": ROWS}), "write them out by `jq -c '.data[]' FILE > FILE.jsonl`"),
    Kind(
        "columns of unequal length",
        "a.json",
        as_json(COLUMNS | {"chosen": []}),
        "write the file again, or write one object a line (`jq -c '.[]' FILE > FILE.jsonl`)",
    ),
    Kind(
        "`.csv` whose quotes do not match",
        "a.csv",
        b'prompt,chosen\na,"b\nc,d\n',
        "a quote within a quoted field is written twice; mend it there, or save the table as .jsonl",
    ),
    Kind("`.csv` with two columns of one name", "a.csv", b"prompt,prompt\na,b\n", "rename or drop all but one"),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_a_file_is_read_to_its_last_row_or_refused_with_the_remedy(kind: Kind, tmp_path: Path) -> None:
    path = kind.write(tmp_path)
    if kind.remedy:
        with pytest.raises(DataError) as caught:
            list(iter_raw_rows(str(path)))
        assert str(path) in str(caught.value) and kind.remedy in str(caught.value)
    else:
        found = list(iter_raw_rows(str(path)))
        assert [raw.row for raw in found] == ROWS
        assert len({raw.place for raw in found}) == len(found) and {raw.file for raw in found} == {str(path)}


def test_the_documentation_lists_these_kinds() -> None:
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    section = page.partition("## Files\n")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| ")][1:] == [kind.line() for kind in KINDS]


@pytest.mark.parametrize(
    ("name", "content", "line", "reason", "detail"),
    [
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}\n',
            2,
            Reason.INVALID_JSON,
            "the key 'prompt' is there twice",
        ),
        ("a.jsonl", b'{"prompt": "a"}\n{"meta": {"k": 1, "k": 2}}\n', 2, Reason.INVALID_JSON, "the key 'k' is there twice"),
        (
            "a.json",
            b'[{"prompt": "a"}, {"prompt": "a", "prompt": "b"}]',
            2,
            Reason.INVALID_JSON,
            "the key 'prompt' is there twice",
        ),
        ("a.json", b'[{"prompt": "a"}, 7]', 2, Reason.NOT_AN_OBJECT, "a JSON int, expected an object"),
        ("a.json", b'{"prompt": "a"}\n{"prompt"\n', 2, Reason.INVALID_JSON, "delimiter"),
        (
            "a.jsonl",
            codecs.BOM_UTF16_LE + '{"prompt": "a"}\n{"b": "\ud800"}'.encode("utf-16-le", "surrogatepass"),
            2,
            Reason.BAD_UTF8,
            "byte 7",
        ),
        ("a.csv", b"prompt,chosen\na,b\n\nc,d,e\n", 4, Reason.NOT_AN_OBJECT, "3 fields, and the first row names 2 columns"),
        ("a.csv", b"prompt,chosen\na,b\nc,\xff\n", 3, Reason.BAD_UTF8, "'chosen': character 0"),
        ("a.csv", b"prompt\na\n\"[{'role': 'user'}]\"\n", 3, Reason.WRONG_TYPE, "'prompt' is a list as Python prints it"),
    ],
)
def test_a_row_that_cannot_be_read_has_its_place_and_reason(
    name: str, content: bytes, line: int, reason: Reason, detail: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    good, bad = iter_raw_rows(str(tmp_path / name))
    assert good.row is not None and good.row["prompt"] == "a"
    assert (bad.row, bad.line, bad.problem) == (None, line, reason)
    assert detail in bad.detail


def test_a_json_file_of_one_row_is_one_row(tmp_path: Path) -> None:
    """A conversation is a list, and no column."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for row in ({"prompt": "a", "chosen": "b"}, {"chosen": turns, "rejected": turns}, {"messages": turns}, {}):
        for indent in (None, 2):
            (tmp_path / "a.json").write_bytes(as_json(row, indent))
            assert [raw.row for raw in iter_raw_rows(str(tmp_path / "a.json"))] == [row]


def test_a_broken_first_line_is_one_bad_row(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(b'{"prompt"\n' + TEXT)
        found = list(iter_raw_rows(str(tmp_path / name)))
        assert [raw.row for raw in found] == [None, *ROWS] and found[0].problem is Reason.INVALID_JSON


def test_the_place_where_an_array_breaks_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[\n{"prompt": "a"},\n{"prompt": b}\n]')
    with pytest.raises(DataError, match=r"a\.json: row 2, line 3: not valid JSON: Expecting value: line 3 column 12"):
        list(iter_raw_rows(str(tmp_path / "a.json")))


def test_fields_of_a_table_are_text_none_or_conversations(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}]
    text = io.StringIO()
    csv.writer(text).writerows([["prompt", "chosen", "group"], [json.dumps(turns), "[1] is a list", ""]])
    (tmp_path / "a.csv").write_text(text.getvalue())
    (raw,) = iter_raw_rows(str(tmp_path / "a.csv"))
    assert raw.row == {"prompt": turns, "chosen": "[1] is a list", "group": None}


def test_one_json_value_that_is_too_large_to_be_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvpo_ray.data.json_rows.MAX_DOCUMENT", 100)
    (tmp_path / "a.json").write_bytes(as_json(ROWS))
    with pytest.raises(DataError, match=r"a\.json: one JSON value of more than .*jq -c"):
        list(iter_raw_rows(str(tmp_path / "a.json")))
