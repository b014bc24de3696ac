"""The ledger: every admitted row has one state, and the books balance at every checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dvpo_ray.errors import CheckpointError
from dvpo_ray.types import RowId, StepResult


class LedgerState(BaseModel):
    """The books as a checkpoint holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    trained: int = Field(ge=0)
    dead_lettered: int = Field(ge=0)
    in_flight: list[str]


class Ledger:
    """Counts rows: admitted = trained + dead-lettered + in flight; no row twice. Threads that make rows may admit more."""

    EMPTY: ClassVar[Mapping[str, Any]] = {"trained": 0, "dead_lettered": 0, "in_flight": []}

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._in_flight: set[RowId] = set()
        self.admitted = 0
        self.trained = 0
        self.dead_lettered = 0

    def admit(self, rows: Iterable[RowId]) -> None:
        """Take rows onto the books; a row that is on them already is a bug in the plan."""
        ids = list(rows)
        with self._lock:
            assert len(set(ids)) == len(ids) and not self._in_flight.intersection(ids), f"row ids are unique: {ids[:3]}"
            self._in_flight.update(ids)
            self.admitted += len(ids)

    def settle(self, result: StepResult, given_up: Iterable[RowId] = ()) -> None:
        """Take a step's rows off the books: those trained, those that the learner dropped, and those ``given_up`` before.

        Rows that are not in flight, or are settled twice, are a bug in the pipeline.
        """
        with self._lock:
            self.trained += self._take_off(result.trained, "trained")
            self.dead_lettered += self._take_off([*result.dropped, *given_up], "given up")

    def _take_off(self, rows: Sequence[RowId], what: str) -> int:
        """Take rows off the books; returns how many."""
        ids = set(rows)
        unknown = sorted(map(str, ids - self._in_flight))
        assert not unknown and len(ids) == len(rows), f"rows {what} twice or never admitted: {unknown[:3]}"
        self._in_flight -= ids
        return len(ids)

    def state(self) -> dict[str, Any]:
        """The books as they are, for a checkpoint."""
        with self._lock:
            self.check()
            return {"trained": self.trained, "dead_lettered": self.dead_lettered, "in_flight": sorted(map(str, self._in_flight))}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Take the books over from a checkpoint of ``step`` trained steps.

        Rows that were in flight are of later steps, which admit them again under the same ids and seeds.

        Raises:
            CheckpointError: the books are not those of such a checkpoint.
        """
        try:
            books = LedgerState.model_validate(state)
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise CheckpointError(f"checkpoint of step {step}: state.ledger.{field}: {error.errors()[0]['msg']}") from error
        try:
            early = [text for text in books.in_flight if RowId.parse(text).step < step]
        except ValueError as error:
            raise CheckpointError(f"checkpoint of step {step}: state.ledger.in_flight: {error}") from error
        if early:
            raise CheckpointError(f"checkpoint of step {step} has rows of trained steps in flight: {early[:3]}")
        self._in_flight = set()
        self.trained, self.dead_lettered = books.trained, books.dead_lettered
        self.admitted = self.trained + self.dead_lettered

    def check(self) -> dict[str, int]:
        """The invariant, and the counts for the record."""
        with self._lock:
            in_flight = len(self._in_flight)
            assert self.admitted == self.trained + self.dead_lettered + in_flight, "the ledger does not balance"
            return {
                "ledger/admitted": self.admitted,
                "ledger/trained": self.trained,
                "ledger/dead_lettered": self.dead_lettered,
                "ledger/in_flight": in_flight,
            }
