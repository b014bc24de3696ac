"""Raw rows from files, folders, package data and Hugging Face datasets, one by one and with their place of origin."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

from dvpo_ray.data.reasons import Reason
from dvpo_ray.errors import DataError
from dvpo_ray.json_files import parse_object, read_object

LINE_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
PACKAGE_PREFIX = "package:"
MAX_LINE = 64 * 2**20


@dataclass(frozen=True)
class RawRow:
    """A row as it was found: ``row`` is a JSON object, or None when ``problem`` says why there is none."""

    file: str
    line: int
    row: dict[str, Any] | None
    problem: Reason | None = None
    detail: str = ""


def iter_raw_rows(source: str, split: str | None = None) -> Iterator[RawRow]:
    """Yield the rows of a source; lines are numbered from 1.

    A line that is not UTF-8, not JSON, not an object or longer than ``MAX_LINE`` bytes becomes a RawRow with a problem, never an
    exception; so does a Parquet row with text that is not UTF-8.

    Raises:
        DataError: the source does not exist, is cut short, or is of no known kind.
    """
    if source.startswith(PACKAGE_PREFIX):
        package, _, inner = source.removeprefix(PACKAGE_PREFIX).partition("/")
        if inner.startswith("/") or ".." in Path(inner).parts:
            raise DataError(f"'{source}' leads out of package '{package}'; name a file inside it, or give the file's own path")
        try:
            path = Path(str(resources.files(package) / inner))
        except (ImportError, ValueError, TypeError) as error:
            raise DataError(f"'{source}': package '{package}' is not installed: {error}") from error
    else:
        path = Path(source)
    yield from _path_rows(path, source, split)


def names_a_path(source: str) -> bool:
    """Whether a source that is not there was meant as a file or folder, not as the name of a Hugging Face dataset."""
    return bool(Path(source).suffix) or source.startswith((".", "/", "~", PACKAGE_PREFIX))


def _path_rows(path: Path, source: str, split: str | None) -> Iterator[RawRow]:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise DataError(f"'{source}' cannot be read: {error}; give a file, a folder or a dataset name") from error
    if path.is_file():
        yield from _file_rows(path)
    elif path.is_dir():
        yield from _folder_rows(path, split)
    elif names_a_path(source):
        raise DataError(f"'{source}' does not exist; give a file, a folder or a dataset name")
    else:
        yield from _dataset_rows(_load_named(source, split), source)


def _file_rows(path: Path) -> Iterator[RawRow]:
    if path.name.endswith(LINE_SUFFIXES):
        yield from _json_lines(path)
    elif path.suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise DataError(f"{path}: unknown kind of file; use {', '.join(LINE_SUFFIXES)} or .parquet")


def _json_lines(path: Path) -> Iterator[RawRow]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(_lines(stream), 1):
                if line is None:
                    yield RawRow(str(path), number, None, Reason.TOO_LONG, f"the line has more than {MAX_LINE:,} bytes")
                elif line.strip():
                    yield _parse_line(str(path), number, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut short after line {number}: {error}; copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _lines(stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes | None]:
    """Lines, or None for one that is too long to be held: a few kilobytes of gzip can be gigabytes of one line."""
    while line := stream.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE + 1)
        yield None


def _parse_line(file: str, number: int, line: bytes) -> RawRow:
    try:
        return RawRow(file, number, parse_object(line))
    except UnicodeDecodeError as error:
        return RawRow(file, number, None, Reason.BAD_UTF8, f"byte {error.start}: {error.reason}")
    except ValueError as error:
        return RawRow(file, number, None, Reason.INVALID_JSON, str(error))
    except TypeError as error:
        return RawRow(file, number, None, Reason.NOT_AN_OBJECT, str(error))


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(f"{path}: more than one column is called '{twice[0]}'; rename or drop all but one")
            for batch in file.iter_batches():
                for raw in _batch_rows(batch, str(path), number + 1):
                    number = raw.line
                    yield raw
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged Parquet after row {number}: {error}; copy or download it again") from error


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


def _folder_rows(path: Path, split: str | None) -> Iterator[RawRow]:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import DatasetDict, load_from_disk

        try:
            _check_inside(path)
            dataset = load_from_disk(str(path))
        except Exception as error:  # the library raises many unrelated types for a folder that is damaged
            raise DataError(f"'{path}' is a saved dataset that cannot be opened: {error!r}; copy or save it again") from error
        if isinstance(dataset, DatasetDict):
            dataset = _pick_split(dataset, split, str(path))
        yield from _dataset_rows(dataset, str(path))
        return
    files = sorted(f for f in path.iterdir() if f.name.endswith((*LINE_SUFFIXES, ".parquet")))
    if not files:
        raise DataError(f"folder '{path}' holds no saved dataset and no {', '.join(LINE_SUFFIXES)} or .parquet file")
    for file in files:
        yield from _file_rows(file)


def _check_inside(path: Path) -> None:
    """Refuse a saved dataset whose records of its splits and files lead out of its folder."""
    record = path / "dataset_dict.json"
    for split in read_object(record)["splits"] if record.is_file() else ():
        if Path(split).name != split or split == "..":
            raise DataError(f"{record}: splits: '{split}' points outside the folder; it is not trusted")
    for state in (*path.glob("state.json"), *path.glob("*/state.json")):
        for entry in read_object(state)["_data_files"]:
            if Path(entry["filename"]).name != entry["filename"]:
                raise DataError(f"{state}: _data_files: '{entry['filename']}' points outside the folder; it is not trusted")


def _load_named(name: str, split: str | None) -> Any:
    from datasets import DatasetDict, load_dataset

    try:
        dataset = load_dataset(name)
    except Exception as error:  # the library raises many unrelated types for a name it cannot find or reach
        raise DataError(
            f"'{name}' is no file or folder, and loading it as a Hugging Face dataset failed: {error}; check the spelling, or "
            "download it and give its folder"
        ) from error
    return _pick_split(dataset, split, name) if isinstance(dataset, DatasetDict) else dataset


def _pick_split(dataset: Any, split: str | None, name: str) -> Any:
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        raise DataError(f"'{name}' has the splits {', '.join(dataset)}; name one of them as `split` (got {split!r})")
    return dataset[split]


def _dataset_rows(dataset: Any, name: str) -> Iterator[RawRow]:
    number = 0
    try:
        for number, row in enumerate(dataset, 1):
            yield RawRow(name, number, dict(row))
    except Exception as error:  # the library raises many unrelated types for a row that it cannot read
        raise DataError(f"'{name}': damaged after row {number}: {error!r}; copy or download it again") from error
