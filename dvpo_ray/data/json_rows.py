"""Rows of JSON files: an object a line, an array of objects, an object of columns, or objects one after the other."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dvpo_ray.data.opening import MAX_LINE, lines, opened
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.reasons import Reason
from dvpo_ray.errors import DataError
from dvpo_ray.io.json_files import DuplicateKeyError, parse_object, unique_keys

# Of a file that is one JSON value and so must be held as a whole.
MAX_DOCUMENT = 2**31
SPACE = re.compile(r"[ \t\r\n]*")
UNIQUE = json.JSONDecoder(object_pairs_hook=unique_keys)
ANY = json.JSONDecoder()
# Keys under which exports keep their rows.
WRAPPERS = ("data", "rows", "examples", "instances", "train", "test", "validation")
AS_LINES = "write one object a line (`jq -c '.[]' FILE > FILE.jsonl`)"


def json_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a file whose layout its content decides; of one with a name for JSON lines, only where lines are no rows.

    A row that is not UTF-8, not JSON, not an object, holds a key twice or, as a line, is too long has a problem.

    Raises:
        DataError: it is one JSON value and broken, too large, or neither rows nor columns.
    """
    if _is_document(path):
        text = _whole(path)
        at = _skip(text, 0)
        is_array = text.startswith("[", at)
        try:
            # Lines that are no rows are told from a broken array by its first element; a name for JSON says which is meant.
            first = None if is_array and _named_json(path) else _value(text, _skip(text, at + 1) if is_array else at)
        except ValueError:
            pass
        else:
            yield from _document_rows(path, text, at, None if is_array else first)
            return
    with opened(path) as stream:
        for number, line in enumerate(lines(stream), 1):
            if line is None:
                yield RawRow(str(path), number, None, Reason.TOO_LONG, f"the line has more than {MAX_LINE:,} bytes")
            elif line.strip():
                yield _line_row(str(path), number, line)


def _line_row(file: str, number: int, line: bytes) -> RawRow:
    try:
        # Files with a byte-order mark that were put one after the other have one within.
        return RawRow(file, number, parse_object(line.removeprefix(codecs.BOM_UTF8), unique=True))
    except UnicodeDecodeError as error:
        return RawRow(file, number, None, Reason.BAD_UTF8, f"byte {error.start}: {error.reason}")
    except ValueError as error:
        return RawRow(file, number, None, Reason.INVALID_JSON, str(error))
    except TypeError as error:
        return RawRow(file, number, None, Reason.NOT_AN_OBJECT, str(error))


def _is_document(path: Path) -> bool:
    """Whether a file is to be read as a whole: its first line is no value, or the only one and holds several rows."""
    with opened(path) as stream:
        first, second = [*islice((line for line in lines(stream) if line is None or line.strip()), 2), b"", b""][:2]
    if first is None:
        return _named_json(path)
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return bool(re.match(rb"\s*[\[{]" if _named_json(path) else rb"\s*(\{\s*$|\[\s*(\{|$))", first))
    if second != b"":
        return False
    return (_named_json(path) and isinstance(value, dict | list)) or (
        isinstance(value, list) and isinstance(next(iter(value), 0), dict)
    )


def _named_json(path: Path) -> bool:
    """Whether a file is called JSON, which may be one value, and not JSON lines."""
    return path.name.lower().removesuffix(".gz").endswith(".json")


def _whole(path: Path) -> str:
    with opened(path) as stream:
        data = stream.read(MAX_DOCUMENT + 1)
    if len(data) > MAX_DOCUMENT:
        raise DataError(
            f"{path}: one JSON value of more than {MAX_DOCUMENT >> 30} GiB, which would be held as a whole: {AS_LINES}"
        )
    # Bytes that are not UTF-8 stay in the row that holds them, which is refused for them.
    return data.decode("utf-8", "surrogateescape")


def _document_rows(path: Path, text: str, at: int, first: tuple[Any, int] | None) -> Iterator[RawRow]:
    """Rows of the array that begins at a place, or of the objects there, of which ``first`` has been read."""
    is_array = first is None
    at = _skip(text, at + 1) if is_array else at
    number = 0
    while at < len(text) and not (is_array and text[at] == "]"):
        number += 1
        try:
            value, at = first if first is not None and number == 1 else _value(text, at)
        except ValueError as error:
            raise _broken(path, text, at, number, str(error)) from error
        at = _skip(text, at)
        if number == 1 and not is_array and at == len(text) and isinstance(value, dict):
            yield from _object_rows(path, value)
            return
        yield _row(str(path), number, value)
        if is_array and text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif is_array and text[at : at + 1] != "]":
            raise _broken(path, text, at, number, "the array goes on without a comma, or its end is missing")
    if is_array and text[at : at + 1] != "]":
        raise _broken(path, text, at, number, "the end of the array is missing")
    if is_array and _skip(text, at + 1) < len(text):
        raise _broken(path, text, _skip(text, at + 1), number, "something follows the end of the array")


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at a place, or the error that its keys are, and where it ends.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        try:
            return UNIQUE.raw_decode(text, at)
        except DuplicateKeyError as error:
            return error, ANY.raw_decode(text, at)[1]
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _row(file: str, number: int, value: Any) -> RawRow:
    if isinstance(value, DuplicateKeyError):
        return RawRow(file, number, None, Reason.INVALID_JSON, str(value))
    if not isinstance(value, dict):
        return RawRow(file, number, None, Reason.NOT_AN_OBJECT, f"a JSON {type(value).__name__}, expected an object")
    return RawRow(file, number, value)


def _object_rows(path: Path, found: dict[str, Any]) -> Iterator[RawRow]:
    """Rows of a file that is one object: columns, or one row."""
    columns = list(found.values())
    if columns and all(isinstance(column, dict) for column in columns):  # by keys, as pandas writes them
        if not all(key.isdecimal() for column in columns for key in column):
            yield from (_row(str(path), number, row) for number, row in enumerate(columns, 1))
            return
        if any(column.keys() != columns[0].keys() for column in columns):
            raise DataError(f"{path}: columns that do not name the same rows: write the file again, or {AS_LINES}")
        columns = [[column[key] for key in columns[0]] for column in columns]
    wrapped = next((key for key, column in found.items() if key in WRAPPERS and _holds_objects(column)), None)
    if wrapped is None and columns and all(_holds_objects(column) for column in columns):
        wrapped = next(iter(found))
    if wrapped is not None:
        raise DataError(
            f"{path}: its rows lie under the key '{wrapped}': write them out by `jq -c '.{wrapped}[]' FILE > FILE.jsonl`"
        )
    if not columns or not all(isinstance(column, list) for column in columns) or any(map(_is_conversation, columns)):
        yield RawRow(str(path), 1, found)
        return
    lengths = {key: len(column) for key, column in zip(found, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"'{key}' {length}" for key, length in lengths.items())
        raise DataError(f"{path}: columns of unequal length ({told} rows): write the file again, or {AS_LINES}")
    for number, row in enumerate(zip(*columns, strict=True), 1):
        yield RawRow(str(path), number, dict(zip(found, row, strict=True)))


def _holds_objects(column: Any) -> bool:
    return isinstance(column, list) and bool(column) and isinstance(column[0], dict) and not _is_conversation(column)


def _is_conversation(column: Any) -> bool:
    return (
        isinstance(column, list)
        and bool(column)
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in column)
    )


def _skip(text: str, at: int) -> int:
    """The next place that is no white space."""
    match = SPACE.match(text, at)
    return match.end() if match else at


def _broken(path: Path, text: str, at: int, number: int, problem: str) -> DataError:
    line = text.count("\n", 0, at) + 1
    return DataError(f"{path}: row {number}, line {line}: not valid JSON: {problem}; mend it there, or write the file again")
