"""Policy training foretold from the speed of value training."""

from __future__ import annotations

import pytest

from dvpo_ray.config import PipelineRecipe, load_recipe
from dvpo_ray.planning.ahead import START_S, policy_seconds
from dvpo_ray.planning.shapes import ModelShape
from tests.support.decided import decided
from tests.unit.planning.test_planning import SMOLLM2_135M


def test_the_demo_is_foretold_within_a_third() -> None:
    """On two AVX2 cores in float32 a value step of the demo (16 answers of about 25 + 36 tokens) took 7.4 s, and a policy step
    13.6 s of rollout, 8.9 of scoring, 17 of learning and 1 of sync; its two evaluations are of 126 answers instead of 32."""
    policy, shape = decided(load_recipe(PipelineRecipe, "demo", [])).policy, ModelShape.of(SMOLLM2_135M)
    measured = 20 * (13.6 + 8.9 + 17 + 1) + 2 * 126 / 32 * (13.6 + 8.9) + START_S
    assert policy_seconds(policy, shape, 16, 25, 36, 7.4) == pytest.approx(measured, rel=1 / 3)


def test_a_machine_twice_as_slow_takes_about_twice_as_long() -> None:
    policy, shape = decided(load_recipe(PipelineRecipe, "demo", [])).policy, ModelShape.of(SMOLLM2_135M)
    fast, slow = (policy_seconds(policy, shape, 16, 25, 36, seconds) - START_S for seconds in (7.4, 14.8))
    # What memory moves, in sync and optimizer, is taken to be as fast on both.
    assert 1.8 < slow / fast < 2
