"""Which kinds of files hold rows, and the rows of one file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath

from dvpo_ray.data.json_rows import json_rows
from dvpo_ray.data.opening import head_of, refuse_foreign
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.table_rows import parquet_rows, separated_rows
from dvpo_ray.errors import DataError

JSON = (".jsonl", ".ndjson", ".jsonlines", ".json")
TABLES = {".csv": ",", ".tsv": "\t"}
PARQUET = ".parquet"
PARQUET_MAGIC = b"PAR1"
KINDS = f"{', '.join((*JSON, *TABLES))} (each also with .gz) or {PARQUET}"
# What to do with files that hold data in a form that is not read.
UNREAD = {
    ".parquet.gz": "unpack it by `gunzip`",
    ".tar.gz": "unpack it",
    ".gz": "name it after what it holds, as in `pairs.jsonl.gz`",
    ".zst": "unpack it by `zstd -d`",
    ".bz2": "unpack it by `bunzip2`",
    ".xz": "unpack it by `unxz`",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".7z": "unpack it",
    ".arrow": "save it as .parquet, or give the folder that `save_to_disk` wrote",
    ".feather": "save it as .parquet",
    ".orc": "save it as .parquet",
    ".xlsx": "save its sheet as .csv",
    ".xls": "save its sheet as .csv",
}
# The same of files that lie beside data as often as they hold some.
SELDOM_DATA = {
    ".txt": "write one JSON object a line, as .jsonl",
    ".pkl": "save it as .jsonl or .parquet; pickles are not loaded, for they can run any code",
    ".pt": "save it as .jsonl or .parquet; pickles are not loaded, for they can run any code",
    ".yaml": "save it as .jsonl",
    ".yml": "save it as .jsonl",
    ".xml": "save it as .jsonl",
    ".sqlite": "save its table as .csv",
    ".db": "save its table as .csv",
}


def kind_of(name: str) -> str | None:
    """The ending of a known kind of file, in small letters and without ``.gz``; None when the name has none."""
    name = name.lower()
    if name.endswith(PARQUET):
        return PARQUET
    return next((ending for ending in (*JSON, *TABLES) if name.removesuffix(".gz").endswith(ending)), None)


def unread_data(name: str) -> str | None:
    """What to do with a file of data in a form that is not read; None when its name is not one of such a file."""
    return next((remedy for ending, remedy in UNREAD.items() if name.lower().endswith(ending)), None)


def remedy_of(name: str) -> str | None:
    """As ``unread_data``, also of files that seldom hold data."""
    return unread_data(name) or SELDOM_DATA.get(PurePath(name.lower()).suffix)


def file_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file; its first bytes decide, its name only where they leave it open.

    Raises:
        DataError: it is of no known kind, damaged, cut short, or cannot be read.
    """
    kind = kind_of(path.name)
    if kind is None:
        raise DataError(f"{path}: unknown kind of file: {remedy_of(path.name) or f'use {KINDS}'}")
    number = 0
    try:
        for raw in _rows(path, kind):
            number = raw.line
            yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged or cut short after line {number}: {error}; copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _rows(path: Path, kind: str) -> Iterator[RawRow]:
    head = head_of(path)
    if head.startswith(PARQUET_MAGIC):
        return parquet_rows(path)
    if kind == PARQUET:
        refuse_foreign(head, path)
        return parquet_rows(path)
    return separated_rows(path, TABLES[kind]) if kind in TABLES else json_rows(path)
