"""What the settings of any part must be able to do."""

from __future__ import annotations

import inspect
import json
import pickle
from typing import Any

from pydantic import TypeAdapter

from dvpo_ray.config.base import Choice


def check_settings(settings: Choice) -> None:
    """Settings reach actors by pickle and a resumed or submitted run by JSON, and are the same there.

    Raises:
        AssertionError: they are not, or another process would not find their class.
    """
    base = base_of(settings)
    name = type(settings).__qualname__
    settings = TypeAdapter(base).validate_python(settings)
    again = TypeAdapter(base).validate_python(json.loads(json.dumps(settings.model_dump(), default=str)))
    assert again == settings, f"{name}: written as JSON and read again, {settings!r} is {again!r}"
    assert pickle.loads(pickle.dumps(settings)) == settings, f"{name}: {settings!r} is not the same after a round trip by pickle"


def base_of(settings: Choice) -> type[Choice]:
    """The class of all settings of this kind."""
    assert isinstance(settings, Choice), f"expected settings, an object of a class derived from Choice, got {settings!r:.200}"
    bases = [kind for kind in type(settings).__mro__ if "registry" in vars(kind)]
    assert bases, f"{type(settings).__qualname__} is derived from none of the settings that a recipe can choose by `type`"
    return bases[0]


def assert_members(thing: Any, protocol: type) -> None:
    """Everything that a Protocol names is there, and can be called with what it is called with."""
    for name, wanted in inspect.getmembers(protocol):
        if name.startswith("_") or not (inspect.isfunction(wanted) or isinstance(wanted, property)):
            continue
        kind = type(thing).__qualname__
        assert hasattr(thing, name), f"{kind} has no {name}: see {protocol.__module__}.{protocol.__qualname__}"
        if isinstance(wanted, property):
            continue
        found = getattr(thing, name)
        assert callable(found), f"{kind}.{name} is {found!r:.80}, which cannot be called"
        given = list(inspect.signature(wanted).parameters)[1:]
        try:
            inspect.signature(found).bind(*given)
        except TypeError as error:
            raise AssertionError(f"{kind}.{name} cannot be called with ({', '.join(given)}): {error}") from error
