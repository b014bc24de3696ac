"""Rows of tables: comma- and tab-separated text, and Parquet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dvpo_ray.data.opening import MAX_LINE, lines, opened
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.reasons import Reason
from dvpo_ray.errors import DataError

DELIMITERS = (",", "\t", ";")
# A conversation as Python or numpy print it, which nothing can read back with certainty.
PRINTED = re.compile(r"\[\s*\{\s*'")
QUOTES = "a quote within a quoted field is written twice; mend it there, or save the table as .jsonl"


def separated_rows(path: Path, delimiter: str) -> Iterator[RawRow]:
    """Rows of separated text, whose first row names the columns. An empty field is none; one that holds a list of JSON objects is
    that list.

    Raises:
        DataError: its quotes do not match, or two columns have one name.
    """
    with opened(path) as stream:
        text = _decoded(stream, path)
        header = next(text, "")
        if delimiter not in header:
            delimiter = next((other for other in DELIMITERS if other in header), delimiter)
        csv.field_size_limit(MAX_LINE)
        table = csv.reader(_rejoined(header, text), delimiter=delimiter, strict=True)
        try:
            names = next(table, [])
            _refuse_twice([name for name in names if name], path)
            begins = table.line_num + 1
            for fields in table:
                if fields:
                    yield _row_of_fields(str(path), begins, names, fields)
                begins = table.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}: line {table.line_num}: {error}: {QUOTES}") from error


def _decoded(stream: io.BufferedIOBase, path: Path) -> Iterator[str]:
    for number, line in enumerate(lines(stream), 1):
        if line is None:
            raise DataError(f"{path}: line {number}: longer than {MAX_LINE:,} bytes: split it, or leave its row out")
        yield line.decode("utf-8", "surrogateescape")


def _rejoined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _row_of_fields(file: str, line: int, names: list[str], fields: list[str]) -> RawRow:
    if len(fields) != len(names):
        return RawRow(
            file, line, None, Reason.NOT_AN_OBJECT, f"{len(fields)} fields, and the first row names {len(names)} columns"
        )
    row: dict[str, Any] = {}
    for name, field in zip(names, fields, strict=True):
        try:
            field.encode()
        except UnicodeEncodeError as error:
            return RawRow(file, line, None, Reason.BAD_UTF8, f"'{name}': character {error.start}: {error.reason}")
        if PRINTED.match(field):
            detail = f"'{name}' is a list as Python prints it: write it as JSON (`json.dumps`)"
            return RawRow(file, line, None, Reason.WRONG_TYPE, detail)
        row[name] = _value_of_field(field)
    return RawRow(file, line, row)


def _value_of_field(field: str) -> Any:
    if re.match(r"\s*\[\s*\{", field):
        try:
            value = json.loads(field)
        except (ValueError, RecursionError):
            return field
        if all(isinstance(item, dict) for item in value):
            return value
    return field or None


def parquet_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a Parquet file; one that no Python value can hold has a problem.

    Raises:
        DataError: it is damaged, or two columns have one name.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            _refuse_twice(file.schema_arrow.names, path)
            for batch in file.iter_batches():
                for raw in _batch_rows(batch, str(path), number + 1):
                    number = raw.line
                    yield raw
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged Parquet after row {number}: {error}; copy or download it again") from error


def _refuse_twice(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: more than one column is called '{twice[0]}'; rename or drop all but one")


def _batch_rows(batch: Any, file: str, first: int) -> Iterator[RawRow]:
    """Rows of a record batch; ``first`` is the number of its first."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # one row's text or date cannot be a Python value: find out which
        for i in range(batch.num_rows):
            yield _single_row(batch.slice(i, 1), file, first + i)
        return
    for number, row in enumerate(rows, first):
        yield RawRow(file, number, row)


def _single_row(batch: Any, file: str, number: int) -> RawRow:
    try:
        return RawRow(file, number, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return RawRow(file, number, None, Reason.BAD_UTF8, f"byte {error.start}: {error.reason}")
    except (ValueError, OverflowError) as error:
        return RawRow(file, number, None, Reason.WRONG_TYPE, str(error))
