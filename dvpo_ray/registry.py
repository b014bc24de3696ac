"""What a recipe can choose by name: parts that come with the project, those of installed plug-ins, and the user's own.

A setting that chooses has a ``type``. It is a name, or ``package.module:Class`` for a class of the user's own. Names come from
this project, from ``register``, and from modules that installed packages name in the entry-point group ``dvpo_ray.plugins``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from dvpo_ray.errors import ConfigError

GROUP = "dvpo_ray.plugins"
# The packages of this project, whose modules are wherever it runs.
CODE = ("dvpo_ray", "actors", "jobs")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


def load_entry_point(path: str) -> Any:
    """The object that ``package.module:name`` points to.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load '{path}': {error}; install its package or correct the name") from error


def place_of(thing: Any, what: str) -> str:
    """``package.module:name`` of a class or function, by which other processes import it.

    Raises:
        ConfigError: they could not.
    """
    module, name = thing.__module__, thing.__qualname__
    if module == "__main__" or "<" in name:
        raise ConfigError(
            f"{what} '{name}' is defined in a script, a notebook or a function, where the processes of a run cannot import it: "
            "move it to the top of a module of its own, and import it from there"
        )
    return f"{module}:{name}"


@cache
def load_plugins() -> None:
    """Import what installed packages name in the entry-point group ``dvpo_ray.plugins``: their modules register their parts.

    Raises:
        ConfigError: a plug-in cannot be imported.
    """
    for one in entry_points(group=GROUP):
        try:
            one.load()
        # Whatever it raises is its author's to mend.
        except Exception as error:
            package = one.dist.name if one.dist is not None else "an installed package"
            raise ConfigError(
                f"plug-in '{one.name}' ({one.value}) of {package} cannot be loaded: {type(error).__name__}: {error}; "
                "mend or uninstall it"
            ) from error


def is_everywhere(module: str) -> bool:
    """Whether every process of a run registers what a module registers: it belongs to the project or to an installed plug-in."""
    package = module.partition(".")[0]
    return package in CODE or package in {one.module.partition(".")[0] for one in entry_points(group=GROUP)}


@dataclass
class Registry:
    """The parts of one kind by name: each a settings class, and settings that the name stands for beside.

    Attributes:
        what: the kind, for people. Example: "advantage estimator".
        default: the name that is meant where none is given.
        known: (settings class or its place, settings) by name.
    """

    what: str
    default: str
    known: dict[str, tuple[type | str, Mapping[str, Any]]] = field(default_factory=dict)

    def register(self, name: str, settings: type | str, given: Mapping[str, Any] | None = None) -> None:
        """Make a settings class known under a name; a class may be told by its place, and is then imported when it is asked for.
        A module that is imported again may register its own parts again.

        Raises:
            ConfigError: the name has another meaning already, or cannot be one.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"{self.what} '{name}': a name begins with a letter and holds letters, digits, '_', '.' and '-'")
        entry = settings, dict(given or {})
        before = self.known.get(name, entry)
        if (_place(before[0]), before[1]) != (_place(settings), entry[1]):
            raise ConfigError(f"{self.what} '{name}' is registered twice: give one of them another name")
        self.known[name] = entry

    def find(self, name: str) -> tuple[type, Mapping[str, Any]]:
        """The settings class that a ``type`` chooses, and the settings that it stands for beside.

        Raises:
            ConfigError: there is none.
        """
        if ":" in name:
            return load_entry_point(name), {}
        if name not in self.known:
            load_plugins()
        if name not in self.known:
            raise ConfigError(
                f"type = '{name}' is no {self.what}: one of {', '.join(sorted(self.known))}, or a class of your own as "
                "'package.module:Class'"
            )
        settings, given = self.known[name]
        return (load_entry_point(settings) if isinstance(settings, str) else settings), given

    def name_of(self, settings: type, name: str) -> str:
        """The ``type`` by which every process of a run finds a settings class that ``name`` found in this one: a name that comes
        with the project or an installed plug-in, or else its place.

        Raises:
            ConfigError: other processes cannot import it.
        """
        if ":" in name:
            return name
        if is_everywhere(settings.__module__):
            for known in (name, *self.known):
                found, given = self.known.get(known, ("", {}))
                if _place(found) == _place(settings) and not given:
                    return known
        return place_of(settings, f"{self.what} of class")

    def classes(self) -> list[type]:
        """All settings classes that have names, in the order in which they were registered, each once."""
        found = [self.find(name)[0] for name in self.known]
        return list(dict.fromkeys(found))


def _place(settings: type | str) -> str:
    return settings if isinstance(settings, str) else f"{settings.__module__}:{settings.__qualname__}"
