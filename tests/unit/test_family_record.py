"""What is recorded of engines on a CPU: the words for it, and every family's entry."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.family_sync import Served, read_found, root_of
from scripts.tiny_families import FAMILIES


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"known": False, "reason": "unknown"}, "not known to vLLM"),
        ({"reason": "no kernel"}, "not served by vLLM's CPU build"),
        ({"gap_at_start": 0.02, "gap_after_update": 0.0}, "served with other log-probs"),
        ({"gap_at_start": 0.0, "reason": "KeyError"}, "served, no update"),
        ({"gap_at_start": 0.0, "gap_after_update": 0.02}, "served, other weights after an update"),
        ({"gap_at_start": 0.01, "gap_after_update": 0.01}, "yes"),
        ({"gap_at_start": 0.0, "gap_after_update": 0.0, "prefix_caching": False}, "yes, with `prefix_caching = false`"),
    ],
)
def test_the_words_for_what_engines_do(given: dict[str, Any], status: str) -> None:
    assert Served(**{"vllm": "0", "known": True} | given).status == status


def test_a_family_that_is_not_served_has_a_reason() -> None:
    found = read_found()
    assert set(found) <= set(FAMILIES)
    assert all(one.reason for one in found.values() if one.gap_at_start is None)


def test_the_reason_is_the_first_sentence_of_the_error_that_came_first() -> None:
    try:
        try:
            raise KeyError("e_score\nand more")
        except KeyError as first:
            raise RuntimeError("the engine did not start") from first
    except RuntimeError as error:
        assert root_of(error) == r"KeyError: 'e_score\nand more'"
    assert root_of(ValueError("one. two.\nthree")) == "ValueError: one"
