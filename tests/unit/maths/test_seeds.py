"""Seeds of answers are apart wherever their places are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.config import PolicyRecipe
from dvpo_ray.config.algorithms import DvpoGae
from dvpo_ray.config.loading import build
from dvpo_ray.data import EncodedPrompt
from dvpo_ray.evaluation.held_out import Evaluator
from dvpo_ray.maths.seeds import sampling_seed
from tests.support.fakes import shuffled

places = st.tuples(
    st.integers(0, 2**31 - 1), st.sampled_from(["train", "evaluate", "ask"]), st.integers(0, 9999), st.integers(0, 9999)
)


def prompts(count: int) -> list[EncodedPrompt]:
    return [EncodedPrompt(f"p{i}", f"p{i}", (1, 2), f"p{i}") for i in range(count)]


def evaluator(count: int, answers: int, seed: int) -> Evaluator:
    return Evaluator(prompts(count), answers, None, DvpoGae(), None, seed)


def seeds_of(requests: Sequence[Any]) -> list[int]:
    return [request.seed for request in requests]


@given(one=places, other=places)
def test_places_share_a_seed_only_when_they_are_the_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert (sampling_seed(*one) == sampling_seed(*other)) == (one == other)
    assert 0 <= sampling_seed(*one) < 2**63


def test_a_seed_is_the_same_on_every_machine() -> None:
    """The first eight bytes of sha256 of "(0, 'train', 3, 1)", less the last bit."""
    assert sampling_seed(0, "train", 3, 1) == 8413766595253416400
    assert sampling_seed(0, "train", 31) != sampling_seed(0, "train", 3, 1)


def test_neighbours_stay_apart_beyond_101_answers() -> None:
    """Seeds in steps of 101 a prompt gave the 102nd answer of a prompt the seed of the next one's first."""
    found = seeds_of(evaluator(5, 300, seed=1)._requests)
    assert len(set(found)) == 1500
    # The lowest 32 bits are all that torch's generator for CPUs looks at.
    assert len({seed % 2**32 for seed in found}) == 1500


def test_training_evaluation_and_other_runs_have_seeds_of_their_own() -> None:
    """Run seeds 0 and 101 * k apart, and steps one after the other, over 64 prompts of four answers each."""
    rollout = {"prompts_per_step": 8, "answers_per_prompt": 4}
    recipe = build(PolicyRecipe, {"policy": {"value_model": "g", "data": {"source": "x"}, "rollout": rollout}})
    found: list[int] = []
    for seed in (0, 1, 101):
        plan = shuffled(prompts(16), recipe.policy, seed)
        found += [request_seed for step in range(8) for request_seed in seeds_of(plan.requests(step))]
        found += seeds_of(evaluator(64, 4, seed)._requests)
    assert len(set(found)) == len(found) == 3 * (8 * 32 + 256)
