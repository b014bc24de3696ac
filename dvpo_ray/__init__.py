"""Decoupled Value Policy Optimization as a Ray service.

``load_recipe``, ``run`` and ``read_run`` do what the command line does; ``register_reward`` and its like give names to parts of
your own. They are imported when they are first named, so that ``import dvpo_ray`` is quick and brings no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvpo_ray.api import RunRecord, load_recipe, read_run, run
    from dvpo_ray.config.registration import (
        register_algorithm,
        register_backend,
        register_environment,
        register_plan,
        register_refresh,
        register_reward,
        register_trainer,
    )

__version__ = "0.1.0"
__all__ = [
    "RunRecord",
    "__version__",
    "load_recipe",
    "read_run",
    "register_algorithm",
    "register_backend",
    "register_environment",
    "register_plan",
    "register_refresh",
    "register_reward",
    "register_trainer",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "dvpo_ray.config.registration" if name.startswith("register_") else "dvpo_ray.api"
        return getattr(import_module(module), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
