"""What the tests in ``tests/component/fuzz`` share: how many examples, odd JSON, and damage to bytes and trees."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONGER = int(os.environ.get("DVPO_FUZZ", "1"))
ODD_NUMBERS = (0, -1, 2**63, 10**4000, -(10**400), 1e308, math.inf, -math.inf, math.nan, -0.0)
ODD_TEXT = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\udfff x",
    "\u2028",
    "\ufeff",
    "e\u0301",
    "\U0001f9d1\u200d\U0001f680",
    "../x",
    "a" * 5000,
)


def examples(number: int) -> settings:
    """So many examples, the same ones each time; ``DVPO_FUZZ=50`` takes 50 times as many, new ones each time."""
    return settings(
        max_examples=number * LONGER,
        derandomize=LONGER == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def odd_json() -> st.SearchStrategy[Any]:
    """Trees of what JSON can spell, Python's NaN and lone surrogates included."""
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-9, 9)
        | st.floats()
        | st.sampled_from(ODD_NUMBERS)
        | st.sampled_from(ODD_TEXT)
        | st.text(st.characters(codec=None), max_size=9)
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )


def nested(depth: int) -> str:
    """JSON so deep that reading it, or showing what was read, meets the limit of the stack."""
    return "[" * depth + "]" * depth


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some of them flipped, cut out, repeated or cut off at the end."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "cut out", "repeat", "cut off", "zero")))
        length = draw(st.integers(1, 40))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut out":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "cut off":
            del data[at:]
        else:
            data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of dicts and lists in which one place holds something else, is missing, or is new."""
    root: dict[str, Any] = {"": json.loads(json.dumps(tree))}
    holder: Any = root
    key: Any = ""
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 4)):
        holder = holder[key]
        key = draw(st.sampled_from(sorted(holder))) if isinstance(holder, dict) else draw(st.integers(0, len(holder) - 1))
    kind = draw(st.sampled_from(("replace", "replace", "remove", "add")))
    if kind == "remove" and holder is not root:
        del holder[key]
    elif kind == "add" and isinstance(holder, dict) and holder is not root:
        holder[draw(st.text(max_size=5))] = draw(odd_json())
    else:
        holder[key] = draw(odd_json())
    return root[""]
