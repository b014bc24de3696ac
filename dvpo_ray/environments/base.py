"""What an environment is given and what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dvpo_ray.config.environments import EnvironmentSettings
from dvpo_ray.data.encoded import EncodedPrompt
from dvpo_ray.data.messages import Message, Messages
from dvpo_ray.data.turn_joins import TurnJoiner
from dvpo_ray.errors import DataError
from dvpo_ray.registry import load_entry_point
from dvpo_ray.types import RowId


@dataclass(frozen=True)
class EnvironmentRow:
    """What an episode is about.

    Attributes:
        row: its name.
        prompt: all turns and the words of the chat template, as the model reads them, without special tokens.
        columns: what else the prompt's row of the dataset holds.
        seed: for whatever the environment draws: the same seed gives the same episode to the same turns of the policy.
    """

    row: RowId
    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """What follows a turn of the policy. Example: ``Turn((Message("tool", "84"),))``; at the end ``Turn(done=True, reward=1.0)``.

    Attributes:
        messages: what is said to the policy, at least one message; nothing at the end, where nobody would read it.
        done: whether the episode has ended.
        reward: what the policy's turn earned.
        end_state: how the episode ended, if that is not ``stop``: one word, for people, plans and metrics.
        info: what else happened, for those who test or wrap the environment; nothing in a run reads it.
    """

    messages: Messages = ()
    done: bool = False
    reward: float = 0.0
    end_state: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.messages, tuple) or not all(isinstance(one, Message) for one in self.messages):
            raise ValueError(f"messages is {str(self.messages)[:100]}, expected a tuple of Message")
        if self.done == bool(self.messages):
            raise ValueError("a turn either ends the episode or says something: done and messages are both given, or neither is")
        if not isinstance(self.reward, int | float) or not math.isfinite(self.reward):
            raise ValueError(f"reward is {str(self.reward)[:40]}, expected a finite number")
        if self.end_state and not self.done:
            raise ValueError(f"end_state is '{self.end_state}' of an episode that has not ended")


class Environment(Protocol):
    """One episode. Awaited in the process of the engine, where many episodes take turns: what computes or waits without
    ``await`` holds all of them up, and belongs into ``asyncio.to_thread``.

    It is built from its settings. What it raises costs its own row alone, which ends as ``crashed`` with rewards of 0.
    """

    async def reset(self, row: EnvironmentRow) -> Messages:
        """Begin the episode; returns messages that follow the prompt before the policy's first turn, usually none."""
        ...

    async def step(self, message: str) -> Turn:
        """Reply to what the policy wrote in its turn, without the token that ended it."""
        ...

    async def close(self) -> None:
        """Give back what the episode holds. Awaited once at its end, however it ends."""
        ...


def make_environment(settings: EnvironmentSettings) -> Environment:
    """A new episode.

    Raises:
        ConfigError: the environment cannot be imported.
    """
    environment: Environment = settings.build()
    return environment


def check_prompts(settings: EnvironmentSettings, prompts: Sequence[EncodedPrompt], tokenizer: Any, source: str) -> None:
    """Refuse what could not work in any episode, before a run starts.

    Raises:
        ConfigError: the environment cannot be imported.
        ModelError: the chat template does not show replies.
        DataError: prompts of ``source`` lack a column that the environment needs.
    """
    if settings.implementation:
        load_entry_point(settings.implementation)
    TurnJoiner(tokenizer)
    for name in settings.columns:
        lacking = [prompt for prompt in prompts if name not in prompt.columns]
        if lacking:
            there = ", ".join(dict.fromkeys(column for prompt in prompts for column in prompt.columns)) or "none"
            raise DataError(
                f"'{source}': {len(lacking)} of {len(prompts)} prompts have no column '{name}', which policy.environment needs, "
                f"for example row {lacking[0].row_id}; columns beside the prompt: {there}"
            )
