"""Rows of folders: saved by the `datasets` library, downloaded from the Hub, or of files of any known kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dvpo_ray.data.cards import Subset
from dvpo_ray.data.files import KINDS, file_rows, kind_of, remedy_of, unread_data
from dvpo_ray.data.opening import head_of, refuse_foreign
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.split_names import chosen, says, split_of, word_of
from dvpo_ray.errors import DataError
from dvpo_ray.io.json_files import read_object

DATA = "data"
# What lies beside data and describes it.
RECORDS = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SHOWN = 8
DEEPEST = 8


def folder_rows(path: Path, split: str | None) -> Iterator[RawRow]:
    """Rows of all data in a folder, or of those of a split.

    Raises:
        DataError: there is none, it cannot be read, or which is meant is not clear.
    """
    if is_saved(path):
        yield from dataset_rows(_saved(path, split), str(path))
        return
    yield from _rows_of(path, _of_split(path, _data_files(path), split))


def card_rows(subset: Subset, split: str | None) -> Iterator[RawRow]:
    """Rows of the files that a dataset's card names.

    Raises:
        DataError: as ``folder_rows``, or the card does not fit the folder.
    """
    if subset.patterns is None:
        yield from folder_rows(subset.folder, split)
        return
    files = _checked(subset.folder, subset.files(split))
    if not files:
        raise DataError(f"folder '{subset.folder}': none of the files that its card names is of a known kind: {KINDS}")
    yield from _rows_of(subset.folder, files)


def _rows_of(path: Path, files: list[Path]) -> Iterator[RawRow]:
    for file in files:
        name = file.relative_to(path).as_posix()
        yield from (raw if file.parent == path else replace(raw, inside=name) for raw in file_rows(file))


def dataset_rows(dataset: Any, name: str) -> Iterator[RawRow]:
    """Rows of a dataset that the `datasets` library has opened.

    Raises:
        DataError: one cannot be read.
    """
    number = 0
    try:
        for number, row in enumerate(dataset, 1):
            yield RawRow(name, number, dict(row))
    except Exception as error:  # the library raises many unrelated types for a row that it cannot read
        raise DataError(f"'{name}': damaged after row {number}: {error!r}; copy or download it again") from error


def pick_split(dataset: Any, split: str | None, name: str) -> Any:
    """One split of a dataset; the dataset itself when it has none.

    Raises:
        DataError: naming the splits that are there.
    """
    from datasets import DatasetDict

    if isinstance(dataset, DatasetDict):
        return dataset[chosen(dataset, split, name)]
    if split is not None and not says(Path(name).name, split):
        raise DataError(f"'{name}' is one dataset and has no splits; leave `split` out (got '{split}')")
    return dataset


def is_saved(path: Path) -> bool:
    """Whether a folder is one that `save_to_disk` wrote; a folder of plain files may have its description as well."""
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return True
    return (path / "dataset_info.json").is_file() and any(path.glob("*.arrow"))


def _saved(path: Path, split: str | None) -> Any:
    from datasets import load_from_disk

    for file in sorted(path.rglob("*.arrow")):
        if head_of(file).startswith(b"version "):
            refuse_foreign(head_of(file), file)
    try:
        _check_inside(path)
        dataset = load_from_disk(str(path))
    except Exception as error:  # the library raises many unrelated types for a folder that is damaged
        raise DataError(f"'{path}' is a saved dataset that cannot be opened: {error!r}; copy or save it again") from error
    return pick_split(dataset, split, str(path))


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


def _data_files(path: Path) -> list[Path]:
    """The files of a folder that hold rows: directly in it, else anywhere below `data`, else below folders named after splits."""
    here = _visible(path)
    direct = [file for file in here if file.is_file()]
    below = [folder for folder in here if folder.name == DATA and folder.is_dir()]
    if any(map(_holds_data, direct)):
        if below and _files_below(below):
            raise DataError(
                f"folder '{path}' holds data in files of its own and in '{DATA}': name what is meant, as in "
                f'`data_dir = "{DATA}"`, or give one file'
            )
        return _checked(path, direct)
    below = below or [folder for folder in here if folder.is_dir() and word_of(folder.name)]
    found = [*direct, *_files_below(below)]
    if not any(map(_holds_data, found)):
        _explain_nothing(path, here)
    return _checked(path, found)


def _files_below(folders: list[Path], depth: int = DEEPEST) -> list[Path]:
    if folders and not depth:
        raise DataError(f"folder '{folders[0]}' is nested too deeply, or leads back to itself: give a folder further in")
    found = []
    for folder in folders:
        inside = _visible(folder)
        found += [file for file in inside if file.is_file() and _holds_data(file)]
        found += _files_below([one for one in inside if one.is_dir()], depth - 1)
    return sorted(found)


def _visible(path: Path) -> list[Path]:
    """What is in a folder and not hidden: downloads keep notes in hidden files."""
    try:
        return sorted(entry for entry in path.iterdir() if not entry.name.startswith((".", "__")))
    except OSError as error:
        raise DataError(f"folder '{path}' cannot be read: {error}") from error


def _holds_data(file: Path) -> bool:
    return file.name not in RECORDS and (kind_of(file.name) is not None or unread_data(file.name) is not None)


def _checked(path: Path, files: list[Path]) -> list[Path]:
    """Those of a folder's files that hold rows; none that holds data is left out in silence, none is read twice.

    Raises:
        DataError: naming the file.
    """
    seen: dict[str, Path] = {}
    for file in filter(_holds_data, files):
        kind = kind_of(file.name)
        if kind is None:
            remedy = unread_data(file.name)
            raise DataError(f"folder '{path}' holds '{file.name}', which is of no known kind: {remedy}, or take it away")
        packed = ".gz" if file.suffix.lower() == ".gz" else ""
        stem = str(file)[: -len(kind + packed)]
        if stem in seen:
            raise DataError(
                f"folder '{path}' holds '{seen[stem].name}' and '{file.name}', likely the same rows twice: take one away, or "
                "give the file that is meant"
            )
        seen[stem] = file
    return list(seen.values())


def _of_split(path: Path, files: list[Path], split: str | None) -> list[Path]:
    """The files of a split, or all when they do not belong to several."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        name = split_of(file.relative_to(path))
        if name is not None:
            by_split.setdefault(name, []).append(file)
    if split is None and len(by_split) < 2:
        return files
    if not by_split:
        if split is not None and says(path.name, split):
            return files
        raise DataError(f"'{path}': no name of a file says a split; leave `split` out (got '{split}')")
    return by_split[chosen(by_split, split, str(path), by_word=True)]


def _explain_nothing(path: Path, here: list[Path]) -> None:
    """Refuse a folder without a file of a known kind, and say where to look."""
    folders = [entry for entry in here if entry.is_dir()]
    further = [entry for folder in folders for entry in _visible(folder) if entry.is_dir()]
    below = sorted(folder for folder in (*folders, *further) if any(map(_holds_data, _visible(folder))))
    if below:
        names = ", ".join(f"'{folder.relative_to(path).as_posix()}'" for folder in below[:SHOWN])
        more = " and more" if len(below) > SHOWN else ""
        raise DataError(f"folder '{path}' holds data in its folders {names}{more}: name one of them as `data_dir`")
    for file in here:
        remedy = remedy_of(file.name)
        if file.is_file() and remedy is not None:
            raise DataError(f"folder '{path}' holds no file of a known kind, but '{file.name}': {remedy}")
    raise DataError(f"folder '{path}' holds no saved dataset and no file of a known kind: {KINDS}")
