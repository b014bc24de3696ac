"""The kinds of recipes, and how the sections of one say which it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dvpo_ray.config.dpo import DpoRecipe
from dvpo_ray.config.recipes import PipelineRecipe, PolicyRecipe, Recipe, RewardRecipe, ValueRecipe
from dvpo_ray.errors import ConfigError

KINDS: dict[str, type[Recipe]] = {
    "pipeline": PipelineRecipe,
    "value": ValueRecipe,
    "reward": RewardRecipe,
    "policy": PolicyRecipe,
    "dpo": DpoRecipe,
}


def kind_of(tree: Mapping[str, Any], origin: str) -> str:
    """The kind of a recipe, unchecked: both sections of a pipeline, or [value] (of a reward model where its target says so),
    [policy] or [dpo] alone.

    Raises:
        ConfigError: its sections belong to no kind.
    """
    trained = tuple(name for name in ("dpo", "policy", "value") if name in tree)
    if trained == ("policy", "value"):
        return "pipeline"
    if trained == ("value",):
        return "reward" if _target(tree["value"]) == "reward" else "value"
    if len(trained) == 1:
        return trained[0]
    raise ConfigError(
        f"{origin}: needs [value], [policy], both, or [dpo], and has {list(trained) or 'none of them'}: name what to train, "
        "`dvpo config show demo` is an example"
    )


def _target(value: Any) -> Any:
    """The kind of target that a [value] section names, if it does."""
    target = value.get("target") if isinstance(value, Mapping) else None
    return target.get("type") if isinstance(target, Mapping) else None
