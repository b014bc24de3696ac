"""Prints docs/configuration.md from the configuration's own classes: `make docs`."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dvpo_ray.config import DpoRecipe, PolicyRecipe, Recipe, ValueRecipe
from dvpo_ray.config.loading import sections_of

INTRODUCTION = """# Configuration reference

Generated from the configuration classes by `make docs`; do not edit.

A recipe is a TOML file. Its sections are the tables below, and any key can be overridden on the command line with
`--set dotted.path=value`. Unknown keys are refused, and the nearest known one is named. `dvpo config show RECIPE` prints a
recipe with every default filled in; `dvpo config check RECIPE` checks one without starting anything.

All of them may have `[kubernetes]`, which `dvpo k8s render` alone reads.

- `dvpo value train` reads `[run]`, `[cluster]`, `[model]`, `[tracking]` and `[value]`; so does `dvpo reward train`, whose
  `value.target` is `reward`.
- `dvpo policy train` and `dvpo eval` read `[run]`, `[cluster]`, `[model]`, `[tracking]` and `[policy]`.
- `dvpo dpo train` reads `[run]`, `[cluster]`, `[model]`, `[tracking]` and `[dpo]`.
- `dvpo demo` reads the sections of value and policy training; its `policy.value_model` is the one that it has just trained.
"""


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    shared = set(Recipe.model_fields)
    parts += [_section(name, field, {}) for name, field in Recipe.model_fields.items()]
    for recipe in (ValueRecipe, PolicyRecipe, DpoRecipe):
        parts += [_section(name, field, {}) for name, field in recipe.model_fields.items() if name not in shared]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n") + "\n"


def _section(path: str, field: FieldInfo, told: dict[type[BaseModel], str]) -> str:
    """Tables of a section and of the sections within it; ``told`` says where in the same part of a recipe a kind has its own."""
    kinds = sections_of(field.annotation)
    if len(kinds) == 1 and kinds[0] in told:
        return f"## `[{path}]`\n\n{field.description} Its keys are those of `[{told[kinds[0]]}]`.\n\n"
    if typing.get_origin(field.annotation) is dict:
        path += ".NAME"
    text = ""
    for kind in kinds:
        told[kind] = path
        choice = kind.model_fields["type"].default if "type" in kind.model_fields else None
        heading = f"## `[{path}]`" + (f' with `type = "{choice}"`' if choice else "")
        text += f"{heading}\n\n{field.description}\n\n" if kind is kinds[0] else f"{heading}\n\n"
        if choice:
            text += f"{(kind.__doc__ or '').strip()}\n\n"
        rows = list(_rows(kind))
        if rows:
            text += "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        text += "".join(
            _section(f"{path}.{name}", inner, told) for name, inner in kind.model_fields.items() if sections_of(inner.annotation)
        )
    return text


def _rows(kind: type[BaseModel]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        if not sections_of(field.annotation):
            yield f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {field.description} |"


def _type(annotation: Any) -> str:
    """What a recipe's writer would call the type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in arguments)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "table of " + " to ".join(map(_type, arguments))
    if origin is tuple and arguments[-1] is ...:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return "list of " + str(len(arguments)) + " numbers"
    if arguments:
        return " or ".join(dict.fromkeys(_type(part) for part in arguments if part is not type(None)))
    names = {"bool": "true or false", "int": "integer", "float": "number", "str": "text", "Path": "path", "SecretStr": "secret"}
    return names[annotation.__name__]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    return f"`{json.dumps(field.default, default=str)}`"


if __name__ == "__main__":
    print(reference(), end="")
