"""Which split a file belongs to, by its name, and which of several splits a name means."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

from dvpo_ray.errors import DataError

WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "eval",
    "evaluation": "eval",
}
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
# As the `datasets` library names the parts of a split: `train_prefs-00000-of-00002.parquet`.
_PART = re.compile(r"([\w.]+)-\d{5}-of-\d{5}")


def canonical(split: str) -> str:
    """The name of a split, the same for `validation`, `valid`, `val` and `dev`."""
    return WORDS.get(split.lower(), split)


def word_of(name: str) -> str | None:
    """The split that a word of a name says; None when no word does."""
    match = _WORD.search(name)
    return WORDS[match[1].lower()] if match else None


def split_of(file: PurePath) -> str | None:
    """The split of a file, by its name, else by those of the folders above it; None when neither says one."""
    part = _PART.match(file.name)
    if part:
        return canonical(part[1])
    return next((word for word in map(word_of, (file.name, *reversed(file.parent.parts))) if word), None)


def says(name: str, split: str) -> bool:
    """Whether a name is that of a split."""
    return canonical(split) in (split_of(PurePath(name)), word_of(name))


def chosen(splits: Iterable[str], split: str | None, source: str, by_word: bool = False) -> str:
    """The one of several splits that is meant by ``split``, or the only one; ``by_word`` takes one that has it as a word.

    Raises:
        DataError: naming those that are there.
    """
    there = list(splits)
    if split is None and len(there) == 1:
        return there[0]
    if split is not None:
        same = [name for name in there if name == split] or [name for name in there if canonical(name) == canonical(split)]
        if by_word and not same:
            same = [name for name in there if word_of(name) == canonical(split)]
        if len(same) == 1:
            return same[0]
    told = f"'{source}' has the splits {', '.join(sorted(there))}"
    if split is None:
        raise DataError(f'{told}: name one of them, as in `split = "{"train" if "train" in there else there[0]}"`')
    raise DataError(f"{told}, and none or several are meant by split = '{split}': name one of them as it is written there")
