"""What a shape of rows is, and the registry of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dvpo_ray.data.messages import Messages
from dvpo_ray.data.raw_rows import RawRow
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.errors import DataError

Row = Mapping[str, Any]
Use = Literal["pairs", "demonstrations", "prompts"]
USES: tuple[Use, ...] = ("prompts", "demonstrations", "pairs")
# Lowest and highest score that there can be.
Scale = tuple[float, float]
GOOD_OR_BAD: Scale = (0.0, 1.0)
GOOD_WORDS = ("true", "good", "yes", "desirable", "thumbs_up")
BAD_WORDS = ("false", "bad", "no", "undesirable", "thumbs_down")


@dataclass(frozen=True)
class Answer:
    """An answer's text, and its score among those of its prompt (higher is better); without one it is not compared."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Prompted:
    """A prompt and the answers that a row gives to it; ``tools`` is a JSON list of what its template may offer, or empty.

    ``rated``: scores are ratings, which say of an answer alone how good it is, and not only who beats whom. ``scale`` of them,
    where it is known without being told.
    """

    prompt: Messages
    answers: tuple[Answer, ...] = ()
    tools: str = ""
    rated: bool = False
    scale: Scale | None = None


@dataclass(frozen=True)
class Assembly:
    """What is done to the rows of a source before they are read: those that are parts of something are put together.

    ``columns`` are those that are looked at. ``assemble`` takes all rows, and counts by kind what will be left out of them.
    """

    columns: tuple[str, ...]
    assemble: Callable[[Iterable[RawRow], Counter[str]], Iterator[RawRow]]


@dataclass(frozen=True)
class Shape:
    """How rows of one shape are read.

    ``columns`` says for people what it is recognised by. ``gives`` is "pairs" when answers are compared, else "demonstrations" or
    "prompts"; what gives more gives less, too. ``gathered``: a row holds one answer of several to its prompt. ``own_prompts``:
    prompts are written in a way of the shape's own. ``assembly``: ``read`` takes what rows were put together into.
    """

    name: str
    columns: str
    fits: Callable[[Row], bool]
    read: Callable[[Row], Iterator[Prompted]]
    gives: Use
    gathered: bool = False
    own_prompts: bool = False
    assembly: Assembly | None = None

    def rows(self, row: Row) -> list[Prompted]:
        """What a row holds, with the system message and the tools that stand beside it.

        Raises:
            BadRow: with the reason.
        """
        try:
            found = list(self.read(row))
        except KeyError as error:
            raise BadRow(Reason.MISSING_FIELD, f"{error} is missing for a row of the shape '{self.name}'") from error
        tools = tools_of(row)
        return [replace(one, tools=tools) for one in found] if tools else found


Reader = Callable[[Row], Iterator[Prompted]]
SHAPES: dict[str, Shape] = {}
# Scores of answers, in the order in which they are looked for.
SCORES = ("score", "overall_score", "fine-grained_score", "helpfulness", "rating", "reward", "overall", "quality")
RANKS = ("rank", "ranking")
ANSWERS = ("response", "completion", "answer", "output", "text", "content")
SINGLE = ("response", "completion", "answer", "output", "generation")
LISTS = ("completions", "answers", "responses", "outputs", "candidates", "generations")
PROMPTS = ("prompt", "instruction", "question", "problem", "query", "input", "context", "text", "post", "history")
TALKS = ("messages", "conversations", "conversation", "dialog", "dialogue")
SAMPLE = 100


def shape(
    name: str,
    columns: str,
    fits: Callable[[Row], bool],
    gives: Use = "pairs",
    gathered: bool = False,
    own_prompts: bool = False,
    assembly: Assembly | None = None,
) -> Callable[[Reader], Reader]:
    def register(read: Reader) -> Reader:
        SHAPES[name] = Shape(name, columns, fits, read, gives, gathered, own_prompts, assembly)
        return read

    return register


def shape_of(row: Row, use: Use) -> Shape | None:
    """The first shape that a row has and that gives what is wanted."""
    enough = USES[USES.index(use) :]
    return next((shape for shape in SHAPES.values() if shape.gives in enough and shape.fits(row)), None)


def recognise(rows: Sequence[Row], use: Use) -> Shape:
    """The shape that most rows of a sample have; the plainest that gives what is wanted when no row has any."""
    votes = Counter(shape.name for row in rows if (shape := shape_of(row, use)) is not None)
    plain = {"pairs": "pair", "demonstrations": "prompt_and_completion", "prompts": "prompt"}[use]
    return SHAPES[votes.most_common(1)[0][0] if votes else plain]


def shape_named(name: str) -> Shape:
    """A shape by its name.

    Raises:
        DataError: there is none, naming those there are.
    """
    if name not in SHAPES:
        raise DataError(f"format = '{name}' is no known shape of rows; take one of {', '.join(map(repr, SHAPES))}, or 'auto'")
    return SHAPES[name]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns under the names that shapes know: ``{"prompt": "meta.ask"}`` reads a nested one."""
    if not columns:
        return row
    found = {name: value for name, value in row.items() if name not in columns.values()}
    for name, path in columns.items():
        value: Any = row.get(path)
        if path not in row:
            value = row
            for part in path.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        found[name] = value
    return found


def has(row: Row, *names: str) -> bool:
    """Whether a row has something in each of these columns."""
    return all(row.get(name) is not None for name in names)


def first_of(row: Row, names: Sequence[str]) -> str | None:
    """The first of these columns in which a row has something."""
    return next((name for name in names if row.get(name) is not None), None)


def needed(row: Row, *names: str) -> Any:
    """What the first of these columns holds that a row has.

    Raises:
        BadRow: it has none.
    """
    found = first_of(row, names)
    if found is None:
        wanted = f"'{names[0]}' is missing" if len(names) == 1 else f"none of {', '.join(map(repr, names))}"
        raise BadRow(Reason.MISSING_FIELD, wanted)
    return row[found]


def number(value: Any, name: str) -> float:
    """A score; a label in words counts as one.

    Raises:
        BadRow: it is none.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if word in GOOD_WORDS:
            return 1.0
        if word in BAD_WORDS:
            return 0.0
        try:
            value = float(word)
        except ValueError as error:
            raise BadRow(Reason.WRONG_TYPE, f"'{name}' is {value[:40]!r}, expected a number") from error
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow(Reason.WRONG_TYPE, f"'{name}' is {str(value)[:40]}, expected a number")
    return float(value)


def scale_of(score: Any) -> Scale | None:
    """The scale of a score that is written as yes or no; None of a number, which could be on any."""
    if isinstance(score, str):
        return GOOD_OR_BAD if score.strip().lower() in (*GOOD_WORDS, *BAD_WORDS) else None
    return GOOD_OR_BAD if isinstance(score, bool) else None


def tools_of(row: Row) -> str:
    """The tools that a row offers, as a JSON list; empty when it offers none.

    Raises:
        BadRow: they are no list of objects.
    """
    found = row.get("tools")
    if not found:
        return ""
    try:
        tools = json.loads(found) if isinstance(found, str) else found
    except ValueError as error:
        raise BadRow(Reason.WRONG_TYPE, f"'tools' is no JSON: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(Reason.WRONG_TYPE, "'tools' is no list of objects")
    return json.dumps(tools) if tools else ""


def are_texts(value: Any) -> bool:
    """Whether a value is a list of texts, and not an empty one."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str) for item in value)
