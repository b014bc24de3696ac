"""`calculator`: works out what the policy asks for, as ``<calc>12*7</calc>``."""

from __future__ import annotations

import math
import re
from typing import Any

from dvpo_ray.config.environments import Calculator
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.environments.arithmetic import ArithmeticProblem, evaluated, shown
from dvpo_ray.environments.base import EnvironmentRow, Turn

CALL = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
# A minus between two numbers is no sign.
NUMBER = re.compile(r"(?:(?<!\d)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
# Numbers this close are the same: one side was rounded.
TOLERANCE = 1e-6


class CalculatorEnvironment:
    """Tells the policy the result of its last call; an answer without a call ends the episode."""

    def __init__(self, settings: Calculator) -> None:
        self._settings = settings
        self._right: float | None = None
        self._turns = 0

    async def reset(self, row: EnvironmentRow) -> Messages:
        """Raises ValueError when the row does not hold the right number."""
        column = self._settings.answer_column
        self._right = None if column is None else _right_number(row.columns.get(column), column)
        return ()

    async def step(self, message: str) -> Turn:
        """What the last call in a message gives, or what is wrong with it; without a call, what the answer earns."""
        self._turns += 1
        calls = CALL.findall(message)
        if not calls:
            return Turn(done=True, reward=self._earned(message))
        if self._turns == self._settings.max_turns:
            return Turn(done=True, reward=self._earned(message), end_state="turns")
        try:
            said = shown(evaluated(calls[-1]))
        except ArithmeticProblem as problem:
            said = f"error: {problem}"
        return Turn((Message("tool", said),))

    async def close(self) -> None:
        """It holds nothing."""

    def _earned(self, message: str) -> float:
        if self._right is None:
            return 0.0
        # What is asked for is no answer.
        last = last_number(CALL.sub("", message))
        return float(last is not None and abs(last - self._right) <= TOLERANCE * max(1.0, abs(self._right)))


def last_number(text: str) -> float | None:
    """The last number in a text; None when there is none. Example: "So 1,250 in all." has 1250."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _right_number(value: Any, column: str) -> float:
    """A column's number, or the last in its text, as after ``####`` in GSM8K."""
    number = last_number(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"column '{column}' holds {str(value)[:80]!r}, expected a number")
    return float(number)
