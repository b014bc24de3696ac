"""What a reward is given and what it gives, and all rewards of a run together."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol
from weakref import finalize

import numpy as np

from dvpo_ray.config.rewards import RewardSettings
from dvpo_ray.errors import RewardError
from dvpo_ray.types import Ragged, RowId

# Of a whole answer, of each of its T tokens, or none: it abstains.
Score = float | Sequence[float] | None


@dataclass(frozen=True)
class RewardRow:
    """An answer as rewards see it.

    Attributes:
        prompt: all turns and the words of the chat template, as the model reads them, without special tokens.
        answer: the text of its tokens without special ones; what an environment said is in it.
        response_ids: its tokens [T].
        action_mask: which of them the policy wrote [T].
        end_state: ``stop``, ``length`` (cut at the limit), or what an environment says.
        columns: what else the prompt's row of the dataset holds.
        tokenizer: that its tokens are of.
    """

    row: RowId
    prompt: str
    answer: str
    response_ids: np.ndarray
    action_mask: np.ndarray
    end_state: str = "stop"
    columns: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any = None

    def token_of(self, end: int) -> int:
        """The index of the token in which the first ``end`` characters of the answer end: the first with which its text is as
        long. ``end`` is at least 1."""
        low, high = 0, self.response_ids.size - 1
        while low < high:
            middle = (low + high) // 2
            text = self.tokenizer.decode(self.response_ids[: middle + 1], skip_special_tokens=True)
            # A character of which only some bytes are there is shown as one that is not there yet.
            if len(text) - text.endswith("\ufffd") >= end:
                high = middle
            else:
                low = middle + 1
        return low


class RewardChannel(Protocol):
    """One reward. Awaited in the scorers, beside all others."""

    async def __call__(self, rows: Sequence[RewardRow]) -> Sequence[Score]:
        """A score of each row, in their order: a number of the whole answer, T numbers of its tokens, or None to abstain.

        Raises:
            RewardError: it cannot be had.
        """
        ...


class Rewards:
    """All rewards of a run, by name, in the order of the recipe."""

    def __init__(self, configs: Mapping[str, RewardSettings]) -> None:
        """Raises ConfigError when a function cannot be imported or a token is missing."""
        self._names = list(configs)
        self._channels: dict[str, RewardChannel] = {
            name: settings.build(name) for name, settings in configs.items() if not settings.is_model
        }
        # One event loop for all calls: what an async reward opens in one, such as connections, serves the next.
        self._loop = asyncio.Runner()
        finalize(self, self._loop.close)

    def __call__(
        self, rows: Sequence[RewardRow], given: Mapping[str, Sequence[Score]] = MappingProxyType({})
    ) -> dict[str, Ragged]:
        """Unweighted scores of each row by name, float32; ``given`` are those of models, which read tokens.

        Raises:
            RewardError: one failed, or gave something other than finite numbers or None for each row.
        """
        return self._loop.run(self._asked(rows, given))

    async def _asked(self, rows: Sequence[RewardRow], given: Mapping[str, Sequence[Score]]) -> dict[str, Ragged]:
        found = await asyncio.gather(*(channel(rows) for channel in self._channels.values()))
        scores = dict(zip(self._channels, found, strict=True)) | dict(given)
        lengths = [row.response_ids.size for row in rows]
        return {name: ragged_scores(f"reward '{name}'", scores[name], lengths) for name in self._names}


def ragged_scores(what: str, scores: Any, lengths: Sequence[int]) -> Ragged:
    """Scores of rows whose answers have these numbers of tokens, float32: 1 number, as many as tokens, or none.

    Raises:
        RewardError: they are not of that kind; ``what`` gave them.
    """
    rows: list[list[float]] = []
    for i, score in enumerate(_as_many(what, scores, len(lengths))):
        if score is None:
            rows.append([])
        elif isinstance(score, Sequence | np.ndarray) and not isinstance(score, str):
            if len(score) != lengths[i]:
                raise RewardError(
                    f"{what} gave {len(score)} numbers for answer {i} of {len(lengths)}, which has {lengths[i]} tokens: one for "
                    "each, one for all, or None"
                )
            rows.append(_finite(what, score, f"a token of answer {i} of {len(lengths)}"))
        else:
            rows.append(_finite(what, [score], f"answer {i} of {len(lengths)}"))
    return Ragged.of(rows, np.float32)


def whole_scores(what: str, scores: Any, count: int) -> list[float]:
    """Scores of whole answers, none of which may be missing.

    Raises:
        RewardError: they are not as many finite numbers; ``what`` gave them.
    """
    found = _as_many(what, scores, count)
    return [_finite(what, [score], f"answer {i} of {count}")[0] for i, score in enumerate(found)]


def _as_many(what: str, scores: Any, count: int) -> list[Any]:
    try:
        found = list(scores)
    except TypeError as error:
        raise RewardError(f"{what} returned no list of numbers: {str(scores)[:200]}") from error
    if len(found) != count:
        raise RewardError(f"{what} returned {len(found)} numbers for {count} answers")
    return found


def _finite(what: str, scores: Any, whose: str) -> list[float]:
    try:
        found = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise RewardError(f"{what} returned no number for {whose}: {str(scores)[:200]}") from error
    bad = [score for score in found if not math.isfinite(score)]
    if bad:
        raise RewardError(f"{what} returned {bad[0]} for {whose}; it must be finite")
    return found
