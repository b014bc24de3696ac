"""What a recipe names outside itself: data, models, functions, and secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from dvpo_ray.config.recipes import Recipe
from dvpo_ray.config.rewards import FunctionReward, model_rewards
from dvpo_ray.io.paths import expanded

# The packages of this project, whose modules are wherever it runs.
CODE = ("dvpo_ray", "actors", "jobs")
# What may be a URL, and how one of a machine's files begins. MLflow takes the word `databricks` for a server.
PLACES = ("value.checkpoint.copy_to", "policy.checkpoint.copy_to", "dpo.checkpoint.copy_to", "tracking.mlflow_uri")
FILES = ("file://", "file:", "sqlite:///")
ELSEWHERE = re.compile(r"[\w+.-]+:|databricks$")


def data_sources(recipe: Recipe) -> dict[str, str]:
    """Datasets, by dotted path."""
    return settings_at(
        recipe,
        (
            "policy.data.source",
            "policy.ptx.data.source",
            "policy.evaluation.source",
            "value.data.source",
            "value.data.validation_source",
            "dpo.data.source",
            "dpo.data.validation_source",
            "dpo.evaluation.source",
        ),
    )


def models(recipe: Recipe) -> dict[str, str]:
    """Folders of models, or names of packaged ones, by dotted path."""
    found = settings_at(recipe, ("model.path", "policy.value_model", "policy.advantage.critic.initial"))
    policy = getattr(recipe, "policy", None)
    if policy is not None:
        found |= {f"policy.rewards.{name}.folder": reward.folder for name, reward in model_rewards(policy.rewards).items()}
    return found


def filled_in(tree: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(dotted path, what the recipe says, what that is on this machine) of names with `~` or `$VAR`."""
    for key, text in (data_sources(recipe) | models(recipe) | settings_at(recipe, ("run.output_dir",))).items():
        said: Any = tree
        for part in key.split("."):
            said = said.get(part) if isinstance(said, Mapping) else None
        if isinstance(said, str) and expanded(said) != said:
            yield key, said, text


def functions(recipe: Recipe) -> dict[str, str]:
    """Functions of the user's own as ``package.module:name``, by dotted path."""
    found = settings_at(recipe, ("policy.evaluation.gold", "dpo.evaluation.gold"))
    policy = getattr(recipe, "policy", None)
    for name, reward in (policy.rewards if policy else {}).items():
        if isinstance(reward, FunctionReward):
            found[f"policy.rewards.{name}.function"] = reward.function
    return found


def left_behind(text: str, kept: Sequence[Path] = ()) -> Path | None:
    """The file of a function's module when it lies below the current folder, is none of ours, and not among or below ``kept``."""
    parts = text.partition(":")[0].split(".")
    if parts[0] in CODE:
        return None
    module = Path(*parts)
    for path in (module.with_suffix(".py"), module / "__init__.py"):
        if path.exists() and not any(path == one or one in path.parents for one in kept):
            return path
    return None


def places(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(dotted path, scheme, path) of what a run writes outside its folder, where that is in the file system."""
    for key, text in settings_at(recipe, PLACES).items():
        scheme = next((scheme for scheme in FILES if text.startswith(scheme)), "")
        if scheme or not ELSEWHERE.match(text):
            yield key, scheme, text.removeprefix(scheme)


def secrets(section: BaseModel | Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of the secrets that are set, in sections and in sections by name."""
    for name, value in section.items() if isinstance(section, Mapping) else section:
        if isinstance(value, SecretStr):
            yield f"{prefix}{name}"
        elif isinstance(value, BaseModel | Mapping):
            yield from secrets(value, f"{prefix}{name}.")


def settings_at(recipe: Recipe, paths: Sequence[str]) -> dict[str, str]:
    """The settings at dotted paths as text; those that are none, or that this kind of recipe does not have, are left out."""
    found = {}
    for path in paths:
        value: Any = recipe
        for part in path.split("."):
            value = getattr(value, part, None)
        if value is not None:
            found[path] = str(value)
    return found
