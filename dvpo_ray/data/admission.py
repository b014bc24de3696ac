"""The books of a source: every row that is read is either kept or a dead letter, and the counts reconcile."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from dvpo_ray.data.columns import ReadRow
from dvpo_ray.data.dead_letters import DeadLetters
from dvpo_ray.data.formats import GROUP, ID_FIELDS, SHARED_ID_FIELDS, own_id, row_id
from dvpo_ray.data.messages import Messages
from dvpo_ray.data.reasons import BadRow, Reason
from dvpo_ray.data.shapes import (
    SAMPLE,
    Prompted,
    Shape,
    Use,
    prompts_in,
    recognise,
    renamed,
    shape_named,
    shape_of,
    together,
)
from dvpo_ray.data.sources import RawRow

T = TypeVar("T")
AUTO = "auto"


@dataclass(frozen=True)
class Reading:
    """How a source's rows are read: the name of their shape or "auto", and which columns stand for those that shapes know."""

    shape: str = AUTO
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass
class LoadCounts:
    """Rows read, kept and rejected by reason.

    ``made`` are the pairs, demonstrations or prompts of the rows kept, ``labelled`` the answers with labels of their own, by why
    they are in no pair; ``shapes`` how many rows had which shape, ``unread`` the columns that nothing was taken from, ``notes``
    what else happened to rows that were kept, by kind.
    """

    read: int = 0
    kept: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    made: int = 0
    labelled: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, int] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def bad_share(self) -> float:
        """Share of rows that were rejected."""
        return sum(self.rejected.values()) / self.read if self.read else 0.0

    def check(self) -> None:
        """The books balance."""
        assert self.read == self.kept + sum(self.rejected.values()), f"rows do not reconcile: {self}"

    def said(self, what: str) -> str:
        """What was found, in a line for people: "pair: 96 rows, 96 pairs; columns not read: source"."""
        found = f"{', '.join(f'{name}: {count} rows' for name, count in self.shapes.items()) or 'no rows'}, {self.made} {what}"
        if self.labelled:
            found += f" and {_listed(self.labelled, sum(self.labelled.values()), 'answers with labels of their own')}"
        lost = [_listed(self.rejected, self.read - self.kept, "rows left out")] if self.rejected else []
        notes = [f"{note}: {count}" for note, count in sorted(self.notes.items())]
        unread = [f"columns not read: {', '.join(self.unread)}"] if self.unread else []
        return "; ".join([found, *lost, *notes, *unread])


def _listed(counts: Mapping[str, int], total: int, what: str) -> str:
    """ "20 rows left out (tie: 12, too_long: 8)"."""
    return f"{total} {what} ({', '.join(f'{name}: {count}' for name, count in sorted(counts.items()))})"


@dataclass
class _Given:
    """What rows give to one prompt: of a gathered shape several, else one."""

    identity: str
    row: ReadRow
    found: list[Prompted]
    shape: Shape
    raws: list[tuple[RawRow, str]]


class Admission(Generic[T]):
    """Reads the rows of a source. ``build`` makes of a prompt with answers what is kept, or raises BadRow."""

    def __init__(
        self, use: Use, dead_letters: DeadLetters, reading: Reading, build: Callable[[str, ReadRow, Prompted], Sequence[T]]
    ) -> None:
        self._use = use
        self._dead_letters = dead_letters
        self._reading = reading
        self._build = build
        self._kept: list[T] = []
        self._counts = LoadCounts()
        self._rejected: Counter[str] = Counter()
        self._shapes: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._there: dict[str, None] = {}
        self._asked: set[str] = {*ID_FIELDS, *SHARED_ID_FIELDS, GROUP}
        self._gathered: dict[tuple[Messages, str], _Given] = {}

    def run(self, rows: Iterable[RawRow], limit: int | None = None) -> tuple[list[T], LoadCounts]:
        """What was kept, and the books; ``limit`` stops after so many rows."""
        rows = iter(rows)
        sample = list(itertools.islice(rows, SAMPLE))
        usable = [renamed(raw.row, self._reading.columns) for raw in sample if raw.row is not None]
        auto = self._reading.shape == AUTO
        main = recognise(usable, self._use) if auto else shape_named(self._reading.shape)
        rows = itertools.chain(sample, rows)
        if main.assembly is not None:
            rows = main.assembly.assemble(map(self._renamed, rows), self._notes)
        for raw in rows:
            if limit is not None and self._counts.kept >= limit:
                break
            self._take(raw, main, auto)
        for given in self._gathered.values():
            if limit is not None and self._counts.kept >= limit:
                break
            self._admit(given)
        counts = self._counts
        counts.made, counts.rejected, counts.shapes, counts.notes = (
            len(self._kept),
            *map(dict, (self._rejected, self._shapes, self._notes)),
        )
        counts.unread = tuple(name for name in self._there if name not in self._asked)
        counts.check()
        return self._kept, counts

    def _renamed(self, raw: RawRow) -> RawRow:
        return raw if raw.row is None else replace(raw, row=dict(renamed(raw.row, self._reading.columns)))

    def _take(self, raw: RawRow, main: Shape, auto: bool) -> None:
        """Admit what a row gives, or put it with that of other rows of its prompt."""
        identity = raw.place
        try:
            if raw.row is None or raw.problem is not None:
                raise BadRow(raw.problem or Reason.NOT_AN_OBJECT, raw.detail)
            # What went through an assembly has its columns under their known names already.
            row = ReadRow(raw.row if main.assembly else renamed(raw.row, self._reading.columns))
            identity = self._identity(row, identity)
            other = auto and not raw.parts and not main.fits(row)
            shape = shape_of(row, self._use) or main if other else main
            row.names.clear()
            found = prompts_in(row, shape) if self._use == "prompts" else shape.rows(row)
            row.settle()
        except BadRow as bad:
            self._reject([(part, identity) for part in raw.rows], bad)
            return
        for part in raw.rows:
            self._there |= dict.fromkeys(part.row or ())
        if raw.parts and shape.assembly is not None:
            self._asked |= set(shape.assembly.columns)
        self._asked |= row.names | {name for path in self._reading.columns.values() for name in (path, path.partition(".")[0])}
        given = _Given(identity, row, found, shape, [(part, identity) for part in raw.rows])
        if not shape.gathered or self._use == "prompts":
            self._admit(given)
            return
        self._seen.add(identity)
        key = (found[0].prompt, found[0].tools)
        earlier = self._gathered.setdefault(key, given)
        if earlier is not given:
            (one,) = earlier.found
            earlier.found = [together(one, found[0])]
            earlier.raws += given.raws

    def _identity(self, row: ReadRow, place: str) -> str:
        own, identity = own_id(row), row_id(row, place)
        check_text(identity)
        if identity not in self._seen:
            return identity
        if own is not None:
            raise BadRow(Reason.DUPLICATE_ID, f"an earlier row has the id '{identity}'")
        # What several rows share is the id of none of them.
        return next(name for n in itertools.count(2) if (name := f"{identity}#{n}") not in self._seen)

    def _admit(self, given: _Given) -> None:
        made: list[T] = []
        left_out: list[BadRow] = []
        for n, one in enumerate(given.found):
            name = given.identity if len(given.found) == 1 else f"{given.identity}/{n}"
            try:
                made += self._build(name, given.row, one)
            except BadRow as bad:
                left_out.append(bad)
        if not made:
            self._reject(given.raws, left_out[0])
            return
        self._notes.update(f"prompts of kept rows that were left out, {one.reason}" for one in left_out)
        self._kept += made
        self._seen.add(given.identity)
        self._counts.read += len(given.raws)
        self._counts.kept += len(given.raws)
        self._shapes[given.shape.name] += len(given.raws)

    def _reject(self, raws: Sequence[tuple[RawRow, str]], bad: BadRow) -> None:
        self._counts.read += len(raws)
        for raw, identity in raws:
            self._rejected[bad.reason] += 1
            self._dead_letters.add(raw, identity, bad.reason, bad.detail)


def check_text(*texts: str) -> None:
    """Refuse lone surrogates, which JSON can spell and nothing can encode.

    Raises:
        BadRow: there is one.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow(Reason.BAD_UTF8, f"character {error.start} is {text[error.start]!a}: {error.reason}") from error
