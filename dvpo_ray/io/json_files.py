"""JSON that others wrote, or that a failure cut short: whatever it holds, an error names the file, the line and what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dvpo_ray.errors import DataError

REMEDY = "copy the file again from where it was whole, or start the run anew"


class DuplicateKeyError(ValueError):
    """A JSON object holds a key twice."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that pairs of keys and values make, for ``object_pairs_hook``.

    Raises:
        DuplicateKeyError: naming a key that is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise DuplicateKeyError(f"the key {twice[:80]!r} is there twice")
    return found


def parse_object(data: bytes, unique: bool = False) -> dict[str, Any]:
    """A JSON object; of a key that is there twice the last counts, or with ``unique`` none does.

    Raises:
        UnicodeDecodeError: not UTF-8.
        ValueError: not JSON, nested too deeply, with a number of too many digits, or as ``unique_keys``.
        TypeError: JSON, but no object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys if unique else None)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise TypeError(f"a JSON {type(value).__name__}, expected an object")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: {error}; {REMEDY}") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file that a run wrote; none when there is no file.

    Raises:
        DataError: naming the first line that holds something else.
    """
    rows = []
    for number, _, row in iter_records(path):
        if isinstance(row, Exception):
            raise DataError(f"{path}, line {number}: {row}; {REMEDY}")
        rows.append(row)
    return rows


def iter_records(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | Exception]]:
    """(number from 1, line, object or what is wrong with it) of every line that is not blank."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield number, line, parse_object(line)
                except (ValueError, TypeError) as error:
                    yield number, line, error


def check_numbers(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    """Refuse a record without a number under each name.

    Raises:
        DataError: naming the place, the field and what it holds.
    """
    for name in names:
        value = row.get(name)
        if type(value) not in (int, float) or (isinstance(value, int) and abs(value) >= 2**63):
            raise DataError(f"{where}: '{name}' is {str(value)[:80]!r}, expected a number; {REMEDY}")
