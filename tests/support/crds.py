"""KubeRay's own schemas, as an API server with strict field validation applies them: unknown fields are refused, lists with keys
hold each once, and rules in CEL hold. What the operator alone refuses is not looked at."""

from __future__ import annotations

import copy
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import yaml
from jsonschema import Draft202012Validator

from dvpo_ray.kubernetes.manifests import Tree

FOLDER = Path(__file__).parent / "kuberay"
VERSION = "v1"
LEFT_OUT = ("description", "default", "x-kubernetes-map-type", "format")
INT_OR_STRING, KEPT, KEYS, RULES = (
    f"x-kubernetes-{name}" for name in ("int-or-string", "preserve-unknown-fields", "list-map-keys", "validations")
)


class CustomResources:
    """The kinds that the packed definitions define."""

    def __init__(self) -> None:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        self._schemas: dict[str, Tree] = {}
        for file in sorted(FOLDER.glob("*.yaml.gz")):
            with gzip.open(file, "rt") as text:
                spec = yaml.load(text, Loader=loader)["spec"]
            found = next(version for version in spec["versions"] if version["name"] == VERSION)
            self._schemas[spec["names"]["kind"]] = found["schema"]["openAPIV3Schema"]
        self._validators = {kind: _validator(schema) for kind, schema in self._schemas.items()}
        self._cel = celpy.Environment()
        self._programs: dict[str, Any] = {}

    def problems(self, document: Tree) -> list[str]:
        """What is wrong with an object of one of the kinds; nothing with another's."""
        schema = self._schemas.get(str(document.get("kind")))
        if schema is None or not str(document.get("apiVersion")).startswith("ray.io/"):
            return []
        document = copy.deepcopy(document)
        _fill_in(schema, document)
        errors = self._validators[document["kind"]].iter_errors(document)
        found = [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:160]}" for error in errors]
        return found + list(self._broken_rules(schema, document, document["kind"]))

    def _broken_rules(self, schema: Tree, value: Any, path: str) -> Iterator[str]:
        for rule in schema.get(RULES, []):
            # Rules about the object before are for updates.
            if value is not None and "oldSelf" not in rule["rule"] and not self._holds(rule["rule"], value):
                yield f"{path}: {rule.get('message', rule['rule'])}"
        if isinstance(value, dict):
            for key, one in value.items():
                inner = _inner(schema, key)
                if inner:
                    yield from self._broken_rules(inner, one, f"{path}.{key}")
        elif isinstance(value, list) and isinstance(schema.get("items"), dict):
            keys = [tuple(one.get(key) for key in schema.get(KEYS, ())) for one in value if isinstance(one, dict)]
            yield from (f"{path}: two of {key}" for key in set(keys) if key and keys.count(key) > 1)
            for index, one in enumerate(value):
                yield from self._broken_rules(schema["items"], one, f"{path}[{index}]")

    def _holds(self, rule: str, value: Any) -> bool:
        if rule not in self._programs:
            self._programs[rule] = self._cel.program(self._cel.compile(rule))
        try:
            return bool(self._programs[rule].evaluate({"self": celpy.json_to_cel(value)}))
        except celpy.CELEvalError:
            return False


def _inner(schema: Tree, key: str) -> Tree | None:
    more = schema.get("additionalProperties")
    return (schema.get("properties") or {}).get(key) or (more if isinstance(more, dict) else None)


def _validator(schema: Tree) -> Draft202012Validator:
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    return Draft202012Validator(strict)


def _strict(schema: Any) -> Any:
    """The schema as JSON Schema says it, without room for unknown fields."""
    if not isinstance(schema, dict):
        return schema
    found = {key: value for key, value in schema.items() if key not in LEFT_OUT}
    if found.pop(INT_OR_STRING, False):
        found.pop("type", None)
        found.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    if found.pop("nullable", False) and "type" in found:
        found["type"] = [found["type"], "null"]
    if "properties" in found:
        found["properties"] = {key: _strict(value) for key, value in found["properties"].items()}
        if not found.get(KEPT):
            found.setdefault("additionalProperties", False)
    for key in ("additionalProperties", "items"):
        if isinstance(found.get(key), dict):
            found[key] = _strict(found[key])
    return found


def _fill_in(schema: Tree, value: Any) -> None:
    """Drop nulls that may not be, and put in defaults, as an API server does before it checks."""
    if isinstance(value, dict):
        for key, inner in (schema.get("properties") or {}).items():
            if key in value and value[key] is None and not inner.get("nullable"):
                del value[key]
            if key not in value and "default" in inner:
                value[key] = copy.deepcopy(inner["default"])
        for key, one in value.items():
            inner = _inner(schema, key)
            if inner:
                _fill_in(inner, one)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for one in value:
            _fill_in(schema["items"], one)
