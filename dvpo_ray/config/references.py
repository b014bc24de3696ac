"""What a recipe names outside itself: data, models, functions, and secrets."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from dvpo_ray.config.base import Choice, Mark
from dvpo_ray.config.loading import sections_of
from dvpo_ray.config.recipes import Recipe
from dvpo_ray.io.paths import expanded
from dvpo_ray.registry import CODE

# How one of a machine's files begins where a URL may stand. MLflow takes the word `databricks` for a server.
FILES = ("file://", "file:", "sqlite:///")
ELSEWHERE = re.compile(r"[\w+.-]+:|databricks$")


def data_sources(recipe: Recipe) -> dict[str, str]:
    """Datasets, by dotted path."""
    return marked(recipe, Mark.DATA)


def models(recipe: Recipe) -> dict[str, str]:
    """Folders of models, or names of packaged ones and of those on the Hub, by dotted path."""
    return marked(recipe, Mark.MODEL)


def functions(recipe: Recipe) -> dict[str, str]:
    """Functions and parts of the user's own as ``package.module:name``, by dotted path."""
    found = marked(recipe, Mark.FUNCTION)
    for path, settings in own_parts(recipe):
        found[f"{path}.type"] = settings.type
        module = settings.implementation.partition(":")[0]
        if module != settings.type.partition(":")[0] and module.partition(".")[0] not in ("", *CODE):
            found[f"{path}.implementation"] = settings.implementation
    return found


def own_parts(section: BaseModel | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Choice]]:
    """(dotted path, settings) of the parts that are named by their place, in sections and in sections by name."""
    for name, value in section.items() if isinstance(section, Mapping) else section:
        if isinstance(value, Choice) and ":" in value.type:
            yield f"{prefix}{name}", value
        if isinstance(value, BaseModel | Mapping):
            yield from own_parts(value, f"{prefix}{name}.")


def marked(section: BaseModel | Mapping[str, Any], mark: Mark, prefix: str = "") -> dict[str, str]:
    """Settings that bear a mark, as text by dotted path, in sections and in sections by name; none are left out."""
    found: dict[str, str] = {}
    fields = {} if isinstance(section, Mapping) else type(section).model_fields
    for name, value in section.items() if isinstance(section, Mapping) else section:
        if name in fields and mark in marks_of(fields[name]) and value is not None:
            found[f"{prefix}{name}"] = str(value)
        elif isinstance(value, BaseModel | Mapping):
            found |= marked(value, mark, f"{prefix}{name}.")
    return found


def fixed_settings(recipe: Recipe) -> tuple[str, ...]:
    """Dotted paths of the settings of a recipe, those of the user's own parts included, that stay when a run is resumed."""
    own = [path for name, part in own_parts(recipe) for path in fixed_on_resume(type(part), f"{name}.")]
    return tuple(dict.fromkeys([*fixed_on_resume(type(recipe)), *own]))


def fixed_on_resume(kind: type[BaseModel], prefix: str = "") -> tuple[str, ...]:
    """Dotted paths of the settings of a recipe, or whole sections, that must be as they were when a run is resumed."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        if Mark.FIXED in marks_of(field):
            found.append(f"{prefix}{name}")
            continue
        for section in sections_of(field.annotation):
            found += fixed_on_resume(section, f"{prefix}{name}.")
    return tuple(dict.fromkeys(found))


def marks_of(field: FieldInfo) -> set[Mark]:
    """The marks of a field, also within a union with none."""
    return {one for one in (*field.metadata, *_within(field.annotation)) if isinstance(one, Mark)}


def _within(annotation: Any) -> Iterator[Any]:
    yield from getattr(annotation, "__metadata__", ())
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _within(part)


def filled_in(tree: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(dotted path, what the recipe says, what that is on this machine) of names with `~` or `$VAR`."""
    for key, text in (data_sources(recipe) | models(recipe) | {"run.output_dir": str(recipe.run.output_dir)}).items():
        said: Any = tree
        for part in key.split("."):
            said = said.get(part) if isinstance(said, Mapping) else None
        if isinstance(said, str) and expanded(said) != said:
            yield key, said, text


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
    for key, text in marked(recipe, Mark.WRITTEN).items():
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
