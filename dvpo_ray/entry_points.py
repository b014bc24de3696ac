"""Functions of the user's own, named in a recipe."""

from __future__ import annotations

import importlib
from typing import Any

from dvpo_ray.errors import ConfigError


def load_entry_point(path: str) -> Any:
    """The object that ``package.module:name`` points to.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load '{path}': {error}; install its package or correct the name") from error
