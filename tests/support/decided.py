"""Settings with what recipes leave to the device decided, for tests that make actors or plans by themselves."""

from __future__ import annotations

from typing import Any, TypeVar

from dvpo_ray.config import Recipe
from dvpo_ray.config.sections import LearnerSection, ScorerSection
from dvpo_ray.planning.device_defaults import ROLES, settle
from dvpo_ray.planning.node_facts import NodeFacts

R = TypeVar("R", bound=Recipe)
# A machine that computes in float32.
CPU = NodeFacts("a CPU", False, 0.1, 24e9, 100.0)
PASSES: dict[str, Any] = {"dtype": "float32", "token_budget": 4096, "max_padding": 0.05}


def scorer_section(**given: Any) -> ScorerSection:
    return ScorerSection(**PASSES | given)


def learner_section(**given: Any) -> LearnerSection:
    return LearnerSection(**PASSES | given)


def decided(recipe: R, facts: NodeFacts = CPU) -> R:
    """The recipe as it is used on one device."""
    return settle(recipe, {role: [facts] for role in ROLES})[0]
