"""Names for parts of the user's own: `dvpo_ray.register_reward` and its like.

A name stands for a settings class, whose ``implementation`` says what is built from it. In the resolved recipe of a run the place
of the class stands for the name, unless an installed plug-in registers it, so that every process of the run finds it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from dvpo_ray.config.algorithms import ALGORITHMS, AlgorithmSettings
from dvpo_ray.config.backends import BACKENDS, BackendSettings
from dvpo_ray.config.base import Choice
from dvpo_ray.config.environments import ENVIRONMENTS, EnvironmentSettings
from dvpo_ray.config.plans import PLANS, PlanSettings
from dvpo_ray.config.refresh import REFRESHES, RefreshSettings
from dvpo_ray.config.rewards import REWARDS, FunctionReward, RewardSettings
from dvpo_ray.config.trainers import TRAINERS, TrainerSettings
from dvpo_ray.errors import ConfigError
from dvpo_ray.registry import Registry, place_of

T = TypeVar("T")
Decorator = Callable[[T], T]


def register_reward(name: str) -> Decorator[Any]:
    """Give a reward a name: a function of (prompts, answers) or of rows, or a class derived from ``RewardSettings``.

    Raises:
        ConfigError: other processes could not import it, or the name has another meaning.
    """

    def register(reward: Any) -> Any:
        if inspect.isclass(reward) or not callable(reward):
            return _register(REWARDS, RewardSettings, name, reward)
        REWARDS.register(name, FunctionReward, {"function": place_of(reward, "reward function")})
        return reward

    return register


def register_algorithm(name: str) -> Decorator[type[AlgorithmSettings]]:
    """Give an advantage estimator a name, by its class derived from ``AlgorithmSettings``. Raises as ``register_reward``."""
    return lambda settings: _register(ALGORITHMS, AlgorithmSettings, name, settings)


def register_plan(name: str) -> Decorator[type[PlanSettings]]:
    """Give a rollout plan a name, by its class derived from ``PlanSettings``. Raises as ``register_reward``."""
    return lambda settings: _register(PLANS, PlanSettings, name, settings)


def register_environment(name: str) -> Decorator[type[EnvironmentSettings]]:
    """Give an environment a name, by its class derived from ``EnvironmentSettings``. Raises as ``register_reward``."""
    return lambda settings: _register(ENVIRONMENTS, EnvironmentSettings, name, settings)


def register_refresh(name: str) -> Decorator[type[RefreshSettings]]:
    """Give a scorer refresh a name, by its class derived from ``RefreshSettings``. Raises as ``register_reward``."""
    return lambda settings: _register(REFRESHES, RefreshSettings, name, settings)


def register_trainer(name: str) -> Decorator[type[TrainerSettings]]:
    """Give a trainer a name, by its class derived from ``TrainerSettings``. Raises as ``register_reward``."""
    return lambda settings: _register(TRAINERS, TrainerSettings, name, settings)


def register_backend(name: str) -> Decorator[type[BackendSettings]]:
    """Give a training backend a name, by its class derived from ``BackendSettings``. Raises as ``register_reward``."""
    return lambda settings: _register(BACKENDS, BackendSettings, name, settings)


def _register(registry: Registry, base: type[Choice], name: str, settings: Any) -> Any:
    """Register a settings class, and return it."""
    if not (isinstance(settings, type) and issubclass(settings, base)):
        raise ConfigError(
            f"{registry.what} '{name}': {settings!r:.200} is no class derived from {base.__module__}.{base.__name__}, whose "
            "fields are its settings and whose `implementation` says what is built from them"
        )
    place_of(settings, f"{registry.what} of class")
    if not settings.implementation and settings.build is base.build:
        raise ConfigError(f"{registry.what} '{name}': set implementation = 'package.module:Class' in {settings.__qualname__}")
    registry.register(name, settings)
    return settings
