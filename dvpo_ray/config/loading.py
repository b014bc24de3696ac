"""From a TOML file and overrides to a checked configuration, with errors that say which key to mend."""

from __future__ import annotations

import difflib
import json
import re
import string
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from dvpo_ray.config.base import Choice
from dvpo_ray.config.recipes import Recipe
from dvpo_ray.errors import ConfigError
from dvpo_ray.io.secrets import CREDENTIALS

# The file of a run's folder that holds its resolved recipe.
CONFIG = "config.json"
R = TypeVar("R", bound=Recipe)
REDACTED = "**redacted**"
SHOWN = 200
PATH_LETTERS = string.ascii_letters + string.digits + "._-"
DEEPEST = 20
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SURROGATE = re.compile("[\ud800-\udfff]")
TOO_DEEP = f"nested more than {DEEPEST} levels deep"


def load_recipe(kind: type[R], path: str | Path, overrides: Sequence[str] = ()) -> R:
    """Read a recipe, apply overrides in order, and check it.

    Args:
        kind: the recipe class to build.
        path: a TOML file, or the bare name of a recipe shipped in ``jobs/recipes``.
        overrides: ``dotted.path=value``; the value is TOML, and a bare word is taken as a string.

    Raises:
        ConfigError: with file, key, value met and remedy.
    """
    tree, origin = recipe_tree(path, overrides)
    return build(kind, tree, origin)


def recipe_tree(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """What a recipe says, overrides applied, unchecked and without defaults; and where it says so."""
    file, text = _read(path)
    try:
        tree = _parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    for override in overrides:
        merge(tree, _parse_override(override))
    return tree, str(file)


def build(kind: type[R], tree: Mapping[str, Any], origin: str = "configuration") -> R:
    """Check a plain tree of settings; all mistakes are reported together."""
    odd = [f"{path}: {problem}" for path, problem in _odd_leaves(tree)]
    if odd:
        raise ConfigError(f"{origin}: {len(odd)} mistake(s)\n" + "\n".join(f"  {line}" for line in odd))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, problem) for problem in error.errors()]
        raise ConfigError(f"{origin}: {len(lines)} mistake(s)\n" + "\n".join(f"  {line}" for line in lines)) from error


def dump_resolved(config: BaseModel) -> str:
    """The whole configuration as JSON, defaults included, secrets redacted."""
    return json.dumps(_redact(config.model_dump()), indent=2, default=str) + "\n"


def to_toml(tree: Mapping[str, Any], prefix: str = "") -> str:
    """A plain tree of settings as TOML."""
    plain = [f"{_toml_key(key)} = {toml_value(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    text = (f"[{prefix}]\n" if prefix and plain else "") + "\n".join(plain) + "\n"
    for key, value in tree.items():
        if isinstance(value, dict):
            text += to_toml(value, f"{prefix}.{_toml_key(key)}" if prefix else _toml_key(key))
    return text


def _toml_key(key: str) -> str:
    """A key as TOML: names of labels hold slashes and dots."""
    return key if BARE_KEY.fullmatch(key) else toml_value(key)


def toml_value(value: Any) -> str:
    """A plain value as TOML: as JSON, without its pairs of surrogates, and with the one control character it leaves as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(item.name.removesuffix(".toml") for item in _recipe_folder().iterdir() if item.name.endswith(".toml"))


def walk_fields(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, FieldInfo) of every setting, sections before their fields."""
    for name, field in kind.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        for section in sections_of(field.annotation):
            yield from walk_fields(section, f"{path}.")


def _recipe_folder() -> Any:
    return resources.files("jobs") / "recipes"


def _read(path: str | Path) -> tuple[Path, str]:
    file = Path(path)
    try:
        if file.suffix != ".toml" and not file.exists():
            known = shipped_recipes()
            if str(path) not in known:
                raise ConfigError(f"no recipe '{path}': give a .toml file or one of: {', '.join(known)}")
            file = Path(str(_recipe_folder() / f"{path}.toml"))
        return file, file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file}: cannot read the recipe: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: the recipe is not UTF-8 text: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{str(file)!a}: no name of a file: {error}") from error


def _parse_toml(text: str) -> dict[str, Any]:
    """A TOML document.

    Raises:
        ValueError: it is none, or is nested too deeply or has a number of too many digits to be read.
    """
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if any(problem == TOO_DEEP for _, problem in _odd_leaves(tree)):  # `[a.a.a...]` nests without recursion
        raise ValueError(TOO_DEEP)
    return tree


def _odd_leaves(tree: Any, path: str = "", levels: int = DEEPEST) -> Iterator[tuple[str, str]]:
    """(dotted path, what is wrong) of what no setting can hold and no error could show."""
    if not levels:
        yield path, TOO_DEEP
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _odd_leaves(value, f"{path}.{key}" if path else str(key), levels - 1)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from _odd_leaves(value, f"{path}.{i}", levels - 1)
    elif isinstance(tree, int) and not -(2**63) <= tree < 2**63:
        yield path, f"an integer of {tree.bit_length()} bits; TOML has 64"
    elif isinstance(tree, str) and "\0" in tree:
        yield path, f"text with a NUL character: {_shown(tree)}"
    elif isinstance(tree, str) and SURROGATE.search(tree):
        yield path, f"text that is not Unicode: {_shown(tree)}"
    elif isinstance(tree, str) and CREDENTIALS.search(tree):
        yield (
            path,
            "a URL that holds a password or a key, and would be written into the run's folder; put it into the environment",
        )


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        # What follows a path that was not ended by `=` may be a secret.
        path = text[: len(text) - len(text.lstrip(PATH_LETTERS))]
        raise ConfigError(f"override '{path}' is not of the form dotted.path=value")
    for candidate in (value.strip(), toml_value(value.strip())):
        try:
            return _parse_toml(f"{key.strip()} = {candidate}")
        except ValueError:
            continue
    raise ConfigError(f"override '{key.strip()[:SHOWN]}=...' does not begin with a dotted path of plain names")


def merge(tree: dict[str, Any], extra: Mapping[str, Any]) -> None:
    """Put the settings of ``extra`` into a plain tree of settings."""
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            # A changed `type` names another kind of section: the old one's settings do not belong to it.
            if "type" in value and value["type"] != tree[key].get("type", value["type"]):
                tree[key] = {}
            merge(tree[key], value)
        else:
            tree[key] = value


def _explain(kind: type[BaseModel], problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    where = ".".join(path) or kind.__name__
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(kind, path)}"
    if problem["type"] == "missing":
        return f"{where}: required and missing"
    if problem["type"] == "value_error":
        return f"{where}: {message}"
    secret = any(path == where and "Secret" in str(field.annotation) for path, field in walk_fields(kind))
    return f"{where}: {message}; got {REDACTED if secret else _shown(problem['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _nearest(kind: type[BaseModel], path: Sequence[str]) -> str:
    tags = {section.model_fields["type"].default for _, field in walk_fields(kind) for section in tagged_sections(field)}
    dotted = ".".join(part for part in path if part not in tags)
    known = [name for name, _ in walk_fields(kind)]
    parent = dotted.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == parent]
    leaf = path[-1]
    # The same name further in: a setting that has moved into a section of its own.
    matches = [name for name in known if name.startswith(f"{parent}.") and name.rpartition(".")[2] == leaf]
    matches = matches or difflib.get_close_matches(dotted, siblings, n=1, cutoff=0.6)
    if not matches:
        matches = [name for name in known if name.rpartition(".")[2] == leaf] or difflib.get_close_matches(dotted, known, n=1)
    if matches:
        return f"; did you mean '{matches[0]}'?"
    return f"; known keys here: {', '.join(name.rpartition('.')[2] for name in siblings)}"


def tagged_sections(field: Any) -> list[type[BaseModel]]:
    """Those of a field's sections that a `type` chooses."""
    return [section for section in sections_of(field.annotation) if "type" in section.model_fields]


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes that an annotation names, through unions, choices, annotated types, and sections by name."""
    if isinstance(annotation, type) and issubclass(annotation, Choice) and "registry" in annotation.__dict__:
        return annotation.registry.classes()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, dict):
        return [section for part in typing.get_args(annotation) for section in sections_of(part)]
    return []


def _redact(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return REDACTED
    if isinstance(value, Mapping):
        return {key: _redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item) for item in value]
    return value
