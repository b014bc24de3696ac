"""Files of questions and answers: read whole and checked, written whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from dvpo_ray.errors import ConfigError, DataError
from dvpo_ray.io.disk import write_text
from dvpo_ray.io.json_files import iter_records
from dvpo_ray.judging.formats import Answered, Format, Question

T = TypeVar("T", Question, Answered)


def read_questions(path: Path, form: Format) -> list[Question]:
    """All questions of a file, in its order.

    Raises:
        DataError: naming the file, the row, the field and what it holds.
    """
    return _read(path, form.question, form.has_ids)


def read_answers(path: Path, form: Format) -> list[Answered]:
    """All answers of a file, in its order.

    Raises:
        DataError: as ``read_questions``.
    """
    return _read(path, form.answered, form.has_ids)


def refuse_to_replace(path: Path) -> None:
    """Raises ConfigError when answers would be written over a file that is there, or could not be written."""
    try:
        if path.exists():
            raise ConfigError(f"'{path}' is there already and is not written over: give --out another name, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        _unfinished(path).touch()
        _unfinished(path).unlink()
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error}; give --out another name") from error


def write_rows(path: Path, rows: Sequence[dict[str, Any]], form: Format) -> None:
    """Write answers, as JSON lines or as one list."""
    if form.as_list:
        text = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text)


def _unfinished(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def _read(path: Path, parse: Callable[[dict[str, Any], str], T], has_ids: bool) -> list[T]:
    found: dict[str, T] = {}
    times: Counter[str] = Counter()
    for number, row in enumerate(_rows(path), 1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: {row if isinstance(row, Exception) else 'no JSON object'}; mend it or take it out")
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise DataError(f"{where}: {error}; mend it or take it out") from error
        one = parse(row, where)
        times[one.key] += 1
        if times[one.key] > 1:
            if has_ids:
                raise DataError(f"{where}: an earlier row has the id '{one.key[:80]}' too; keep one of them")
            one = replace(one, key=f"{one.key} ({times[one.key]})")
        if one.key in found:
            raise DataError(f"{where}: '{one.key[:80]}' is also how an earlier row is known; change the text of one of them")
        found[one.key] = one
    if not found:
        raise DataError(f"{path} holds no rows; give a file of questions or answers")
    return list(found.values())


def _rows(path: Path) -> list[Any]:
    """What a JSON list or JSON lines hold; an exception in the place of a line that is no object."""
    try:
        with path.open("rb") as stream:
            is_list = stream.read(64).lstrip()[:1] == b"["
            stream.seek(0)
            if not is_list:
                return [row for _, _, row in iter_records(path)]
            rows = json.loads(stream.read().decode("utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give a file of questions or answers") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} begins as a JSON list and is none: {error}; mend it or copy it again") from error
    assert isinstance(rows, list)
    return rows
