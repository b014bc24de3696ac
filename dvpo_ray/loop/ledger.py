"""The ledger: every admitted row has one state, and the books balance at every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dvpo_ray.data import EncodedPrompt
from dvpo_ray.errors import CheckpointError
from dvpo_ray.maths.seeds import sampling_seed
from dvpo_ray.types import GenerationRequest


class LedgerState(BaseModel):
    """The books as a checkpoint holds them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    trained: int = Field(ge=0)
    dead_lettered: int = Field(ge=0)
    in_flight: list[Annotated[str, Field(pattern=r"^[0-9]{1,15}/")]]


class Ledger:
    """Counts rows: admitted = trained + dead-lettered + in flight; no row twice.

    Prompts are visited in a seeded order, every prompt once per epoch; the position is a function of the step alone, so a
    run that starts again at step n admits the same rows.
    """

    EMPTY: ClassVar[Mapping[str, Any]] = {"trained": 0, "dead_lettered": 0, "in_flight": []}

    def __init__(self, prompts: Sequence[EncodedPrompt], prompts_per_step: int, answers_per_prompt: int, seed: int) -> None:
        self._prompts = prompts
        self._prompts_per_step = prompts_per_step
        self._answers_per_prompt = answers_per_prompt
        self._seed = seed
        self._in_flight: set[str] = set()
        self.admitted = 0
        self.trained = 0
        self.dead_lettered = 0

    def admit(self, step: int) -> list[GenerationRequest]:
        """The requests of one step: row id ``step/prompt/answer`` and a seed of its own for each."""
        first = step * self._prompts_per_step
        requests = []
        orders: dict[int, np.ndarray] = {}
        for slot in range(first, first + self._prompts_per_step):
            epoch, offset = divmod(slot, len(self._prompts))
            if epoch not in orders:
                orders[epoch] = np.random.default_rng((self._seed, epoch)).permutation(len(self._prompts))
            prompt = self._prompts[int(orders[epoch][offset])]
            for answer in range(self._answers_per_prompt):
                row_id = f"{step}/{slot}:{prompt.row_id}/{answer}"
                seed = sampling_seed(self._seed, "train", slot, answer)
                requests.append(GenerationRequest(row_id, tuple(prompt.prompt_ids), seed))
        ids = {request.row_id for request in requests}
        assert len(ids) == len(requests) and not ids & self._in_flight, "row ids are unique"
        self._in_flight |= ids
        self.admitted += len(requests)
        return requests

    def trained_rows(self, row_ids: Iterable[str]) -> None:
        """Take rows off the books as trained; a row that is not in flight is a bug in the pipeline."""
        ids = list(row_ids)
        unknown = set(ids) - self._in_flight
        assert not unknown and len(set(ids)) == len(ids), f"rows trained twice or never admitted: {sorted(unknown)[:3]}"
        self._in_flight -= set(ids)
        self.trained += len(ids)

    def dead_letter_rows(self, row_ids: Iterable[str]) -> None:
        """Take rows off the books that were given up."""
        ids = set(row_ids)
        assert ids <= self._in_flight, f"rows given up that are not in flight: {sorted(ids - self._in_flight)[:3]}"
        self._in_flight -= ids
        self.dead_lettered += len(ids)

    def state(self) -> dict[str, Any]:
        """The books as they are, for a checkpoint."""
        self.check()
        return {"trained": self.trained, "dead_lettered": self.dead_lettered, "in_flight": sorted(self._in_flight)}

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
        early = [row_id for row_id in books.in_flight if int(row_id.partition("/")[0]) < step]
        if early:
            raise CheckpointError(f"checkpoint of step {step} has rows of trained steps in flight: {early[:3]}")
        self._in_flight = set()
        self.trained, self.dead_lettered = books.trained, books.dead_lettered
        self.admitted = self.trained + self.dead_lettered

    def check(self) -> dict[str, int]:
        """The invariant, and the counts for the record."""
        in_flight = len(self._in_flight)
        assert self.admitted == self.trained + self.dead_lettered + in_flight, "the ledger does not balance"
        return {
            "ledger/admitted": self.admitted,
            "ledger/trained": self.trained,
            "ledger/dead_lettered": self.dead_lettered,
            "ledger/in_flight": in_flight,
        }
