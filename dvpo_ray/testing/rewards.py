"""Checks of rewards."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from dvpo_ray.config.rewards import RewardSettings
from dvpo_ray.rewards.base import RewardChannel, RewardRow, ragged_scores
from dvpo_ray.testing.settings import check_settings
from dvpo_ray.types import Ragged, RowId

NAME = "checked"
ANSWERS = (
    ("What is 2 + 2?", "4"),
    ("Say hello.", "Hello! How are you today?"),
    ("Größe?", "Ärgerlich groß: 1,5 m. "),
    ("List two fruits.", "1. apples\n2. pears"),
)


class CharacterTokenizer:
    """Every character is a token, whose number is its code point."""

    def encode(self, text: str) -> list[int]:
        """One token a character."""
        return [ord(character) for character in text]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text again."""
        return "".join(chr(one) for one in np.asarray(token_ids, dtype=np.int64).ravel().tolist())


def reward_rows(answers: Sequence[tuple[str, str]] = ANSWERS) -> list[RewardRow]:
    """Rows of (prompt, answer), whose tokens are characters, all written by the policy."""
    tokenizer = CharacterTokenizer()
    return [
        RewardRow(
            row=RowId(0, slot, f"p{slot}", 0),
            prompt=prompt,
            answer=answer,
            response_ids=np.array(tokenizer.encode(answer), dtype=np.int32),
            action_mask=np.ones(len(answer), dtype=bool),
            tokenizer=tokenizer,
        )
        for slot, (prompt, answer) in enumerate(answers)
    ]


def check_reward(settings: RewardSettings, rows: Sequence[RewardRow] | None = None, tolerance: float | None = 1e-5) -> None:
    """A number of each answer, one of each of its tokens, or None, whatever other answers are scored with it.

    ``tolerance`` is how far the scores of an answer may be apart when it is scored again among others; None does not ask, which
    suits judges that are not certain of themselves.

    Raises:
        AssertionError: it is not so.
        RewardError: it failed, or gave what is no score.
    """
    check_settings(settings)
    rows = reward_rows() if rows is None else list(rows)
    assert not settings.is_model, "a model is read by the scorers themselves: there is nothing to build from its settings"
    channel: RewardChannel = settings.build(NAME)
    assert inspect.iscoroutinefunction(channel.__call__), f"{type(channel).__qualname__}.__call__ is not `async def`"
    scores = _scores(channel, rows).rows()
    if tolerance is None:
        return
    for i, again in enumerate(_scores(channel, rows[::-1]).rows()[::-1]):
        assert scores[i].size == again.size and np.allclose(scores[i], again, rtol=0.0, atol=tolerance), (
            f"{type(channel).__qualname__} scored {rows[i].answer!r} {scores[i].tolist()}, and {again.tolist()} among the same "
            "answers in another order"
        )


def _scores(channel: RewardChannel, rows: Sequence[RewardRow]) -> Ragged:
    async def ask() -> Any:
        return await channel(rows)

    return ragged_scores(type(channel).__qualname__, asyncio.run(ask()), [row.response_ids.size for row in rows])
