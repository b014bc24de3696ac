"""Errors in words that can be read, and that cross processes whatever the exceptions were: a class of vLLM's, of pydantic's or of
a user's may not be one that can be pickled, or not one that can be made again from its pickle."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic_core import ValidationError

from dvpo_ray.io.remedies import remedy
from dvpo_ray.io.secrets import masked

MOST_TEXT, MOST_FRAMES, MOST_CAUSES = 800, 3, 3


@dataclass(frozen=True)
class Said:
    """An error as a process told it: ``text`` is exception and message, ``frames`` go from the innermost outwards."""

    text: str
    frames: tuple[str, ...] = ()
    process: str = ""

    def __str__(self) -> str:
        return "\n".join([self.text, *self._places()])

    @property
    def explained(self) -> str:
        """The same with what to change, where that is known."""
        known = remedy(" ".join([self.text, *self.frames]))
        return "\n".join([self.text, *([f"  to mend it: {known}"] if known else []), *self._places()])

    def _places(self) -> list[str]:
        if not self.frames:
            return [f"  in {self.process}"] if self.process else []
        where = f"  in {self.process} at" if self.process else "  at"
        return [f"{where} {self.frames[0]}", *(f"  called at {frame}" for frame in self.frames[1:])]


def said_of(error: BaseException, outer: int = 0) -> Said:
    """An exception of this process; so many of its ``outer`` frames are left out."""
    frames = traceback.extract_tb(error.__traceback__)[outer:][-MOST_FRAMES:]
    return Said(shortened(_chain(error)), tuple(place(f.filename, f.lineno or 0, f.name) for f in reversed(frames)))


def place(file: str, line: int | str, function: str) -> str:
    """A frame, without the folder that packages are installed in."""
    return f"{file.rpartition('site-packages/')[2]}:{line} in {function}"


def shortened(text: str) -> str:
    """The beginning of a text that is too long to be read."""
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."


def _chain(error: BaseException) -> str:
    """An exception, and in brackets those that it was raised from."""
    own, *causes = [_words(one) for one in _with_causes(error)]
    return own + "".join(f" (from {cause})" for cause in causes)


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if found is None:
            return
        yield found
        found = found.__cause__


def _words(error: BaseException) -> str:
    """Type and message; of pydantic's errors what each field said, without the values given: whole configurations are among
    them."""
    if isinstance(error, ValidationError):
        fields = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
        message = "; ".join(f"{field}: {said}" if field else said for field, said in fields)
        return f"ValidationError of {error.title}: {message}"
    try:
        message = str(error)
    # The exception is the user's, and so is what turns it into text.
    except Exception as broken:
        message = f"(a text that fails with {type(broken).__name__})"
    return f"{type(error).__name__}: {masked(message)}".removesuffix(": ")
