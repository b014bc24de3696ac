"""Rows of an open step: given out once, some always held back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.errors import ConfigError
from dvpo_ray.learning.streaming import OpenStep
from tests.support.fakes import scored_batch


@given(sizes=st.lists(st.lists(st.integers(1, 20), max_size=4), min_size=1, max_size=12), full=st.integers(1, 200))
def test_every_row_is_given_out_once_and_some_are_held_back(sizes: list[list[int]], full: int) -> None:
    opened = OpenStep(0, full)
    given_out, held = [], 0
    for number, lengths in enumerate(sizes):
        batch = scored_batch(lengths, prefix=f"{number}-")
        ready = opened.add(batch)
        if ready is not None:
            tokens = ready.prompt_ids.lengths.sum() + ready.response_ids.lengths.sum()
            assert tokens >= full, "less than a micro-batch was given out"
            given_out += ready.rows
        held += len(lengths)
    rest = opened.rest()
    if held == 0:
        assert rest is None and not given_out
        return
    assert rest is not None and len(rest) > 0
    assert sorted([*given_out, *rest.rows]) == sorted(opened.rows().rows)
    assert len(opened.rows()) == held


def test_streaming_names_all_it_needs() -> None:
    def policy(**more: object) -> PolicyRecipe:
        return build(PolicyRecipe, {"policy": {"value_model": "g", "data": {"source": "x"}, "streaming": True} | more})

    with pytest.raises(ConfigError, match=r"loss_normaliser = 'limit', advantage\.whitening = 'scale' or 'none'"):
        policy()
    with pytest.raises(ConfigError, match="inner_epochs = 1 and"):
        policy(ppo={"inner_epochs": 2, "loss_normaliser": "limit"}, advantage={"whitening": "none"})
    with pytest.raises(ConfigError, match=r"scorer\.rows_per_call below the 32 answers of a step"):
        policy(ppo={"loss_normaliser": "limit"}, advantage={"whitening": "scale"})
    policy(ppo={"loss_normaliser": "limit"}, advantage={"whitening": "scale"}, scorer={"rows_per_call": 8})
