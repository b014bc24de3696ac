"""Ages of tokens, what happens to old ones, and that nothing too old is trained on uncorrected."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.loading import build
from dvpo_ray.config.updates import OffPolicySection
from dvpo_ray.errors import ConfigError, StaleRowsError
from dvpo_ray.learning.staleness import ages, check_some_left, keep_fresh, staleness_metrics, token_weights
from dvpo_ray.types import Ragged, ScoredBatch
from tests.support.fakes import scored_batch


def versioned(versions: list[list[int]]) -> ScoredBatch:
    """Rows whose tokens were sampled by the given weight versions."""
    return dataclasses.replace(scored_batch([len(row) for row in versions]), versions=Ragged.of(versions, np.int32))


def test_ages_by_hand() -> None:
    scored = versioned([[3, 3, 4], [5]])
    assert ages(scored, 5).flat.tolist() == [2, 2, 1, 0]
    assert staleness_metrics(scored, 5, dropped=1) == {
        "staleness/mean": 1.25,
        "staleness/max": 2.0,
        "staleness/share": 0.75,
        "staleness/dropped_rows": 1.0,
    }
    with pytest.raises(StaleRowsError, match="tokens of weights 5, but training is at 4"):
        ages(scored, 4)


def names(rows: Any) -> list[str]:
    return [row.prompt for row in rows]


def test_rows_over_the_limit_are_dropped_whole_and_named() -> None:
    scored = versioned([[4, 5], [3, 5], [5, 5]])
    kept, dropped = keep_fresh(scored, 5, OffPolicySection(max_staleness=1))
    assert (names(kept.rows), names(one.row for one in dropped)) == (["r0", "r2"], ["r1"])
    assert all(one.dropped for one in dropped)
    kept, dropped = keep_fresh(scored, 5, OffPolicySection(max_staleness=1, over_limit="mask"))
    assert (names(kept.rows), dropped) == (["r0", "r1", "r2"], ())
    kept, dropped = keep_fresh(scored, 9, OffPolicySection())
    with pytest.raises(StaleRowsError, match=r"all 3 answers of step 9 .* raise off_policy\.max_staleness"):
        check_some_left(len(kept), len(dropped), 9, OffPolicySection())


def test_on_policy_tokens_have_no_weights() -> None:
    assert token_weights(torch.zeros(2), torch.ones(2), torch.zeros(2), OffPolicySection()) is None


def test_weights_by_hand() -> None:
    trained, sampled = torch.log(torch.tensor([0.8, 0.3, 0.8])), torch.log(torch.tensor([0.2, 0.2, 0.2]))
    age = torch.tensor([0.0, 1.0, 2.0])
    both = OffPolicySection(max_staleness=1, over_limit="mask")
    assert token_weights(trained, sampled, age, both).tolist() == pytest.approx([1, 1.5, 0])
    plain = OffPolicySection(max_staleness=2, correction="none")
    assert token_weights(trained, sampled, age, plain).tolist() == [1, 1, 1]
    masked = OffPolicySection(max_staleness=2, correction="masked_is")
    assert token_weights(trained, sampled, age, masked).tolist() == pytest.approx([1, 1.5, 0])


def test_weights_of_tokens_that_the_new_weights_have_given_up_or_taken_up_are_finite() -> None:
    """Log-ratios of 300 and -300 count as 20 and -20: cut at 2, and e^-20 = 2.06e-9."""
    trained, sampled = torch.tensor([0.0, -300.0]), torch.tensor([-300.0, 0.0])
    found = token_weights(trained, sampled, torch.ones(2), OffPolicySection(max_staleness=1, max_weight=2.0))
    assert found is not None and found.tolist() == pytest.approx([2.0, 2.061154e-9], rel=1e-5)


@given(
    versions=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=8),
    limit=st.integers(0, 6),
    over_limit=st.sampled_from(["drop", "mask", "correct"]),
    correction=st.sampled_from(["truncated_is", "masked_is"]),
)
def test_nothing_older_than_the_limit_is_trained_uncorrected(
    versions: list[list[int]], limit: int, over_limit: str, correction: str
) -> None:
    config = OffPolicySection(max_staleness=limit, over_limit=over_limit, correction=correction)
    scored = versioned(versions)
    kept, dropped = keep_fresh(scored, 6, config)
    assert sorted([*kept.rows, *(one.row for one in dropped)]) == sorted(scored.rows)
    age = torch.from_numpy(ages(kept, 6).flat)
    # The trained weights find every token twice as likely as the sampling ones did: corrected tokens weigh 2.
    weights = token_weights(torch.full(age.shape, np.log(2.0)), torch.zeros(age.shape), age, config)
    old = age > limit
    if over_limit == "drop":
        assert not old.any()
    elif old.any():
        assert weights is not None
        assert torch.allclose(weights[old], torch.tensor(0.0 if over_limit == "mask" else 2.0))


def test_settings_that_cannot_work_are_refused() -> None:
    def policy(**off_policy: object) -> PolicyRecipe:
        ppo = {"old_log_probs": "engine"}
        return build(
            PolicyRecipe, {"policy": {"value_model": "g", "data": {"source": "x"}, "ppo": ppo, "off_policy": off_policy}}
        )

    with pytest.raises(ConfigError, match="would do it again"):
        policy(max_staleness=1)
    policy(max_staleness=1, correction="none")
    with pytest.raises(ConfigError, match="tokens of any age"):
        policy(over_limit="correct", correction="none")
