"""Arithmetic that anybody may ask for: a formula is parsed and never executed, and bounded in size before it is worked out."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MOST_CHARACTERS, MOST_DEPTH = 200, 30
# Results are bounded: numerator and denominator in bits, exponents before they are worked out.
MOST_BITS, MOST_EXPONENT = 2048, 64
# Beyond these many digits a result is told rounded.
SHOWN_DIGITS = 12
WRITTEN = re.compile(r"[0-9eE.+\-*/%()_\s]+", re.ASCII)
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))", re.ASCII)
OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
SIGNS: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
KNOWN = "numbers, + - * / // % ** and parentheses"


class ArithmeticProblem(ValueError):
    """What is wrong with a formula, in words for whoever wrote it."""


def evaluated(formula: str) -> Fraction:
    """The exact value of a formula of numbers, ``+ - * / // % **`` and parentheses. Example: ``12*7`` is 84.

    Raises:
        ArithmeticProblem: it is none, too long, divides by zero, or leads to numbers that are too large.
    """
    if len(formula) > MOST_CHARACTERS:
        raise ArithmeticProblem(f"the formula has {len(formula)} characters, at most {MOST_CHARACTERS} are allowed")
    text = THOUSANDS.sub("", formula.strip().replace("^", "**").replace("×", "*").replace("÷", "/"))
    if not WRITTEN.fullmatch(text):
        raise ArithmeticProblem(f"not a formula: use {KNOWN}")
    try:
        tree = ast.parse(text, mode="eval")
    # What the parser raises depends on how broken a text is, and how deep.
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ArithmeticProblem(f"not a formula: use {KNOWN}") from error
    return _value(tree.body, text, MOST_DEPTH)


def _value(node: ast.expr, text: str, depth: int) -> Fraction:
    if depth == 0:
        raise ArithmeticProblem(f"the formula is nested more than {MOST_DEPTH} deep")
    if isinstance(node, ast.Constant):
        return _bounded(_number(node, text))
    if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
        return SIGNS[type(node.op)](_value(node.operand, text, depth - 1))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, text, depth - 1), _value(node.right, text, depth - 1)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in OPERATORS:
            return _applied(OPERATORS[type(node.op)], left, right)
    raise ArithmeticProblem(f"'{(ast.get_source_segment(text, node) or text)[:40]}' is not allowed: use {KNOWN}")


def _number(node: ast.Constant, text: str) -> Fraction:
    """A number as it is written: 0.1 is one tenth, not the nearest number of the machine."""
    if type(node.value) is int:
        return Fraction(node.value)
    written = ast.get_source_segment(text, node) or ""
    if type(node.value) is not float or not math.isfinite(node.value):
        raise ArithmeticProblem(f"'{written[:40]}' is no number that can be used")
    # An exponent would be worked out before it could be bounded.
    return Fraction(node.value) if "e" in written.lower() else Fraction(written.replace("_", ""))


def _applied(function: Callable[[Fraction, Fraction], Fraction | int], left: Fraction, right: Fraction) -> Fraction:
    try:
        return _bounded(Fraction(function(left, right)))
    except ZeroDivisionError as error:
        raise ArithmeticProblem("division by zero") from error


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 1 and abs(exponent) <= MOST_EXPONENT:
        if base == 0 and exponent < 0:
            raise ArithmeticProblem("division by zero")
        return _bounded(Fraction(base ** int(exponent)))
    if base < 0 or abs(exponent) > MOST_EXPONENT:
        raise ArithmeticProblem(f"exponents are whole numbers, or of a positive base, and at most {MOST_EXPONENT}")
    try:
        return _bounded(Fraction(float(base) ** float(exponent)))
    except (OverflowError, ZeroDivisionError) as error:
        raise ArithmeticProblem("the result is too large") from error


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise ArithmeticProblem("the result is too large, or has too many digits")
    return value


def shown(value: Fraction) -> str:
    """A value as people write it. Examples: ``84``, ``0.1``, ``0.333333333333``."""
    if value.denominator == 1 and abs(value) < 10**SHOWN_DIGITS:
        return str(value.numerator)
    try:
        return f"{float(value):.{SHOWN_DIGITS}g}"
    except OverflowError:
        return "too large to be written"
