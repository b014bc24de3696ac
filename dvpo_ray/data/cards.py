"""What a dataset's card says of its data: the `configs` in the header of a folder's README.md, as on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dvpo_ray.data.split_names import chosen
from dvpo_ray.errors import DataError

CARD = "README.md"


@dataclass(frozen=True)
class Subset:
    """A subset of the data in ``folder``, where its patterns begin.

    ``patterns`` of the files of each split; None when the card does not name them, so that the names of files decide. Example:
    ``Subset("default", Path("ultrafeedback"), {"train": ["data/train-*"], "test": ["data/test-*"]})``.
    """

    name: str
    folder: Path
    patterns: Mapping[str, list[str]] | None

    def files(self, split: str | None) -> list[Path]:
        """The files of a split, or of the only one.

        Raises:
            DataError: which split is meant is not clear, one of its files is missing or not in the folder.
        """
        from datasets.data_files import resolve_pattern

        assert self.patterns is not None
        name = chosen(self.patterns, split, f"{self.folder}, subset {self.name}")
        found: dict[Path, None] = {}
        for pattern in self.patterns[name]:
            _check_inside(pattern, self.folder)
            try:
                found |= dict.fromkeys(Path(file) for file in sorted(resolve_pattern(pattern, str(self.folder))))
            except FileNotFoundError as error:
                raise DataError(
                    f"folder '{self.folder}' has no file '{pattern}', which {CARD} names for split '{name}' of subset "
                    f"'{self.name}': download it"
                ) from error
        return list(found)


def subset_of(folder: Path, name: str | None) -> Subset | None:
    """The subset of a folder's data by its name, or the one that stands for all; None when no card names any.

    Raises:
        DataError: the card cannot be read, has no such subset, or has several of which none is the default.
    """
    subsets = _subsets_in(folder / CARD)
    if not subsets:
        return None
    if name is None:
        try:
            name = subsets.get_default_config_name()
        except ValueError as error:
            raise DataError(f"{folder / CARD}: {error} Name one of its subsets as `subset`") from error
    there = ", ".join(f"'{one}'" for one in subsets)
    if name is None:
        raise DataError(
            f"'{folder}' has the subsets {there} ({CARD}): name one of them, as in `subset = \"{next(iter(subsets))}\"`"
        )
    if name not in subsets:
        raise DataError(f"'{folder}' has no subset '{name}', only {there} ({CARD}): name one of them as `subset`")
    return _subset(name, subsets[name], folder)


def _subset(name: str, settings: Mapping[str, Any], folder: Path) -> Subset:
    from datasets.data_files import sanitize_patterns

    inner = settings.get("data_dir")
    if inner is not None:
        _check_inside(str(inner), folder)
        folder = folder / str(inner)
    files = settings.get("data_files")
    try:
        patterns = None if files is None else {split: list(map(str, paths)) for split, paths in sanitize_patterns(files).items()}
    except ValueError as error:
        raise DataError(f"{folder / CARD}: data_files of '{name}': {error}") from error
    return Subset(name, folder, patterns)


def _subsets_in(card: Path) -> Any:
    """The subsets that a card names with their settings, as the `datasets` library reads them; empty without any.

    Raises:
        DataError: its header cannot be read.
    """
    if not card.is_file() or b"\nconfigs:" not in card.read_bytes():
        return {}
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData, metadata_load

    try:
        header = metadata_load(card) or {}
        return MetadataConfigs.from_dataset_card_data(DatasetCardData(**header, ignore_metadata_errors=True))
    except Exception as error:  # the libraries raise many unrelated types for a header that is none
        told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(
            f"{card}: the header, which names the subsets of the data, cannot be read: {told}; download it again, or take it away"
        ) from error


def _check_inside(path: str, folder: Path) -> None:
    """Refuse what leads out of a folder.

    Raises:
        DataError: it does.
    """
    if "://" in path or "::" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise DataError(f"{folder / CARD}: configs: '{path}' points outside the folder; it is not trusted")
