"""Where rows come from: a file, a folder, data of an installed package, or a dataset of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dvpo_ray.data.cards import subset_of
from dvpo_ray.data.files import file_rows, kind_of, remedy_of
from dvpo_ray.data.folders import card_rows, dataset_rows, folder_rows, is_saved, pick_split
from dvpo_ray.data.hub import load_named
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.split_names import says
from dvpo_ray.errors import DataError
from dvpo_ray.io.paths import expanded

PACKAGE_PREFIX = "package:"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Source:
    """What a recipe says of its data.

    ``subset``: configuration of a Hub dataset, also of one that was downloaded, or the folder of that name. ``data_dir``: folder
    within the source. ``revision``: branch, tag or commit of a Hub dataset.
    """

    name: str
    split: str | None = None
    subset: str | None = None
    data_dir: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        parts = [f"{key} {value}" for key, value in vars(self).items() if key != "name" and value is not None]
        return f"{self.name} ({', '.join(parts)})" if parts else self.name


def iter_raw_rows(source: str | Source) -> Iterator[RawRow]:
    """Yield the rows of a source, with their place of origin.

    A row that cannot be read, while others can, becomes a RawRow with a problem, never an exception.

    Raises:
        DataError: the source does not exist, is cut short, is of no known kind, or which of its data is meant is not clear.
    """
    source = Source(source) if isinstance(source, str) else source
    try:
        name = source.name if source.name.startswith(PACKAGE_PREFIX) else expanded(source.name)
    except ValueError as error:
        raise DataError(f"'{source.name}' names no source: {error}") from error
    path = _package_path(name) if name.startswith(PACKAGE_PREFIX) else Path(name)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise DataError(f"'{name}' cannot be read: {error}; give a file, a folder or a dataset name") from error
    if path.is_file():
        _refuse_parts(path, source)
        yield from file_rows(path)
    elif path.is_dir():
        yield from _folder_rows(path, source)
    elif names_a_path(name):
        raise DataError(f"'{name}' does not exist; give a file, a folder or a dataset name")
    else:
        dataset = load_named(name, source.subset, source.data_dir, source.revision)
        yield from dataset_rows(pick_split(dataset, source.split, name), name)


def names_a_path(source: str) -> bool:
    """Whether a source that is not there was meant as a file or folder, not as the name of a Hugging Face dataset."""
    if source.startswith((".", "/", "~", "$", PACKAGE_PREFIX)) or (kind_of(source) or remedy_of(source)):
        return True
    return not HUB_NAME.fullmatch(source) and bool(Path(source).suffix or "/" in source)


def _package_path(source: str) -> Path:
    package, _, inner = source.removeprefix(PACKAGE_PREFIX).partition("/")
    if inner.startswith("/") or ".." in Path(inner).parts:
        raise DataError(f"'{source}' leads out of package '{package}'; name a file inside it, or give the file's own path")
    try:
        return Path(str(resources.files(package) / inner))
    except (ImportError, ValueError, TypeError) as error:
        raise DataError(f"'{source}': package '{package}' is not installed: {error}") from error


def _refuse_parts(path: Path, source: Source) -> None:
    """Refuse to look for a part of a file that is not divided."""
    if source.split is not None and not says(path.name, source.split):
        raise DataError(f"'{path}' is one file and has no splits; leave `split` out (got '{source.split}')")
    for key in ("subset", "data_dir", "revision"):
        if getattr(source, key) is not None:
            raise DataError(f"'{path}' is one file: leave `{key}` out (got '{getattr(source, key)}')")


def _folder_rows(path: Path, source: Source) -> Iterator[RawRow]:
    """Rows of a folder, or of the part of it that ``data_dir`` and ``subset`` name; a card in it says what subsets are."""
    if source.revision is not None:
        raise DataError(f"'{path}' is a folder, which has no revisions: leave `revision` out (got '{source.revision}')")
    path = _within(path, "data_dir", source.data_dir)
    subset = None if is_saved(path) else subset_of(path.absolute(), source.subset)
    if subset is None:
        yield from folder_rows(_within(path, "subset", source.subset), source.split)
    else:
        yield from card_rows(subset, source.split)


def _within(path: Path, key: str, name: str | None) -> Path:
    """The folder of a name in a folder; that itself without a name."""
    if name is None:
        return path
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise DataError(f"'{name}' leads out of folder '{path}': give that folder itself as the source, and leave `{key}` out")
    inner = path / name
    if not inner.is_dir():
        there = ", ".join(f"'{one.name}'" for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith("."))
        raise DataError(f"folder '{path}' has no folder '{name}' ({key}), only {there or 'files'}: name one that is there")
    return inner
