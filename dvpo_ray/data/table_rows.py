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
BATCH_ROWS, NESTED_ROWS = 4096, 64
# Of rows that are Python objects at the same time; a single larger row is too long.
MOST_BYTES = 4 * MAX_LINE
# How many times smaller packed data are, mostly, and may be.
USUALLY_PACKED, MOST_PACKED = 100, 500
# About what a Python object takes besides what it holds.
OBJECT = 56
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
        texts, at_once = _bounds(pyarrow.parquet.read_metadata(path), path)
        # Texts that are there once are held once, however many rows have them.
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, read_dictionary=texts) as file:
            _refuse_twice(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=at_once):
                for raw in _batch_rows(batch, str(path), number + 1):
                    number = raw.line
                    yield raw
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged Parquet after row {number}: {error}; copy or download it again") from error


def _bounds(metadata: Any, path: Path) -> tuple[list[str], int]:
    """The columns of texts and bytes that can be read without a copy for each row, and how many rows to read at once for the
    others, which lie in lists and structs.

    Raises:
        DataError: a column is packed as no data is.
    """
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    texts = {one.path for one in columns if one.physical_type == "BYTE_ARRAY" and one.logical_type.type != "DECIMAL"}
    rows = BATCH_ROWS
    for group in range(metadata.num_row_groups):
        for i in range(metadata.num_columns):
            column = metadata.row_group(group).column(i)
            name, whole, packed = column.path_in_schema, column.total_uncompressed_size, max(1, column.total_compressed_size)
            if whole > MOST_BYTES and whole > MOST_PACKED * packed:
                raise DataError(
                    f"{path}: column '{name}' would unpack from {packed:,} bytes to {whole:,}: data do not pack so; write the "
                    "file again with smaller row groups, or leave it out"
                )
            if name in texts and "." in name:
                # No value is longer than its column.
                rows = min(rows, max(NESTED_ROWS if whole < USUALLY_PACKED * packed else 1, MOST_BYTES // max(1, whole)))
    return [name for name in sorted(texts) if "." not in name], rows


def _unpacked_bytes(array: Any) -> int:
    """About what the values of an Arrow array take as Python objects; each is there as often as rows have it."""
    import pyarrow
    import pyarrow.compute

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        sizes = pyarrow.compute.binary_length(array.dictionary)
        return OBJECT * len(array) + (pyarrow.compute.sum(pyarrow.compute.take(sizes, array.indices)).as_py() or 0)
    if pyarrow.types.is_struct(kind):
        return OBJECT * len(array) + sum(map(_unpacked_bytes, array.flatten()))
    if pyarrow.types.is_map(kind):
        return OBJECT * len(array) + _unpacked_bytes(array.keys) + _unpacked_bytes(array.items)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        return OBJECT * len(array) + _unpacked_bytes(array.flatten())
    return OBJECT * len(array) + int(array.nbytes)


def _refuse_twice(names: list[str], path: Path) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: more than one column is called '{twice[0]}'; rename or drop all but one")


def _batch_rows(batch: Any, file: str, first: int) -> Iterator[RawRow]:
    """Rows of a record batch; ``first`` is the number of its first. No more are unpacked at once than ``MOST_BYTES`` hold."""
    size = sum(map(_unpacked_bytes, batch.columns))
    if batch.num_rows > 1 and size > MOST_BYTES:
        half = batch.num_rows // 2
        yield from _batch_rows(batch.slice(0, half), file, first)
        yield from _batch_rows(batch.slice(half), file, first + half)
        return
    if size > MOST_BYTES:
        yield RawRow(file, first, None, Reason.TOO_LONG, f"the row has more than {MOST_BYTES:,} bytes")
        return
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
