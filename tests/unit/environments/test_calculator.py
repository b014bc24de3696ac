"""The calculator: what it works out, what it refuses, and what answers earn."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.config.environments import Calculator
from dvpo_ray.data.messages import Message
from dvpo_ray.environments import EnvironmentRow, Turn
from dvpo_ray.environments.arithmetic import ArithmeticProblem, evaluated, shown
from dvpo_ray.environments.calculator import CalculatorEnvironment, last_number
from dvpo_ray.environments.conformance import check_environment
from dvpo_ray.types import RowId

ROW = EnvironmentRow(RowId(0, 0, "p", 0), "how many?", {"answer": "so it is\n#### 1,084"})


@pytest.mark.parametrize(
    ("formula", "told"),
    [
        ("12*7", "84"),
        (" 1 + 2 * 3 ", "7"),
        ("(1+2)*3", "9"),
        ("0.1+0.2", "0.3"),
        ("1/3", "0.333333333333"),
        ("7//2", "3"),
        ("-7 % 3", "2"),
        ("2**10", "1024"),
        ("2^10", "1024"),
        ("4**0.5", "2"),
        ("2**-2", "0.25"),
        ("3×4÷2", "6"),
        ("1,250*2", "2500"),
        ("1e3+1", "1001"),
        ("10**13", "1e+13"),
        ("1.5e300*1e10", "too large to be written"),
        ("--3", "3"),
    ],
)
def test_what_formulas_give(formula: str, told: str) -> None:
    assert shown(evaluated(formula)) == told


@pytest.mark.parametrize(
    ("formula", "problem"),
    [
        ("", "not a formula"),
        ("1+", "not a formula"),
        ("two", "not a formula"),
        ("__import__('os')", "not a formula"),
        ("e", "'e' is not allowed"),
        ("E(1)", r"'E\(1\)' is not allowed"),
        ("(1).e", "not allowed"),
        ("...", "no number that can be used"),
        ("1/0", "division by zero"),
        ("1%0", "division by zero"),
        ("0**-1", "division by zero"),
        ("9**9**9", "exponents are"),
        ("(-2)**0.5", "positive base"),
        ("2**64**2", "exponents are"),
        ("(10**60)**60", "too large"),
        ("1e400", "no number that can be used"),
        ("1" * 201, "201 characters, at most 200"),
        ("-" * 60 + "1", "nested more than 30 deep"),
        ("1_", "not a formula"),
    ],
)
def test_what_formulas_are_refused(formula: str, problem: str) -> None:
    with pytest.raises(ArithmeticProblem, match=problem):
        evaluated(formula)


FORMULAS = st.recursive(
    st.one_of(st.integers(0, 999).map(str), st.decimals(0, 99, places=2).map(str)),
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from("+-*/"), parts).map(lambda found: f"({found[0]}{found[1]}{found[2]})"),
        parts.map(lambda part: f"(-{part})"),
    ),
    max_leaves=8,
)


@given(FORMULAS)
def test_formulas_are_worked_out_exactly(formula: str) -> None:
    """Against Python's own reading of the formula over fractions."""
    exact = _over_fractions(formula)
    try:
        found = evaluated(formula)
    except ArithmeticProblem as problem:
        assert exact is None and "division by zero" in str(problem)
        return
    assert found == exact
    shown(found)


def _over_fractions(formula: str) -> Fraction | None:
    text = re.sub(r"\d+(?:\.\d+)?", lambda number: f"Fraction('{number[0]}')", formula)
    try:
        return Fraction(eval(text, {"Fraction": Fraction}))
    except ZeroDivisionError:
        return None


@given(st.one_of(st.text(max_size=250), st.text(alphabet="0123456789.eE+-*/%()_^ ,\n", max_size=250)))
def test_nothing_that_is_written_does_harm(formula: str) -> None:
    began = time.process_time()
    with contextlib.suppress(ArithmeticProblem):
        shown(evaluated(formula))
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 1,250 in all.", 1250),
        ("10-5", 5),
        ("= -5", -5),
        ("1, 2, 3", 3),
        ("12.50 dollars", 12.5),
        ("1e3", 1000),
        (".5", 0.5),
        ("none", None),
        ("84.", 84),
        ("1,2345", 2345),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert last_number(text) == number


def played(settings: Calculator, *messages: str) -> list[Turn]:
    return asyncio.run(check_environment(CalculatorEnvironment(settings), ROW, messages, ends=True))


def test_a_call_is_answered_and_an_answer_judged() -> None:
    turns = played(Calculator(answer_column="answer", max_turns=4), "<calc>542*2</calc>", "<calc>1/0</calc>", "1084")
    assert [one.messages for one in turns] == [
        (Message("tool", "1084"),),
        (Message("tool", "error: division by zero"),),
        (),
    ]
    assert [one.reward for one in turns] == [0.0, 0.0, 1.0]
    (only,) = played(Calculator(answer_column="answer"), "It is 1,085.")
    assert only == Turn(done=True, reward=0.0)
    (only,) = played(Calculator(), "It is 1,084.")
    assert only == Turn(done=True, reward=0.0), "without a column nothing is known to be right"


def test_the_last_turn_ends_it_with_or_without_a_call() -> None:
    turns = played(Calculator(answer_column="answer"), "<calc>1</calc>", "1084 <calc>2</calc>")
    assert turns[-1] == Turn(done=True, reward=1.0, end_state="turns")


@pytest.mark.parametrize("held", [None, "none at all", True, [1], float("nan"), "1e999"])
def test_a_row_without_the_right_number_is_named(held: object) -> None:
    row = EnvironmentRow(ROW.row, "", {"answer": held})
    with pytest.raises(ValueError, match="column 'answer' holds .*, expected a number"):
        asyncio.run(CalculatorEnvironment(Calculator(answer_column="answer")).reset(row))


def test_it_keeps_to_the_contract() -> None:
    turns = asyncio.run(check_environment(CalculatorEnvironment(Calculator()), ROW))
    assert turns == [Turn(done=True)]
