"""Rewards beside the frozen value: functions of whole answers, here or behind HTTP, and scores that models gave."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import httpx
import numpy as np

from dvpo_ray.config.rewards import FunctionReward, HttpReward, ModelReward, RewardConfig
from dvpo_ray.registry import load_entry_point
from dvpo_ray.errors import RewardError
from dvpo_ray.io.error_text import said_of
from dvpo_ray.io.http import Backoff, JsonClient, bearer, is_retryable, retry_after

Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


class Rewards:
    """All rewards of a run, by name, in the order of the recipe."""

    def __init__(self, configs: Mapping[str, RewardConfig]) -> None:
        """Raises ConfigError when a function cannot be imported or a token is missing."""
        self._names = list(configs)
        self._rewards = {
            name: make_reward(name, config) for name, config in configs.items() if not isinstance(config, ModelReward)
        }

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], given: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> np.ndarray:
        """Unweighted scores of each answer, float32 [B, number of rewards]; ``given`` are those of models, which read tokens.

        Raises:
            RewardError: one failed, or returned something other than a finite number for each answer.
        """
        found = {name: reward(prompts, answers) for name, reward in self._rewards.items()} | dict(given)
        columns = [checked(f"reward '{name}'", found[name], len(answers)) for name in self._names]
        return np.array(columns, dtype=np.float32).T.reshape(len(answers), len(columns))


def make_reward(name: str, config: FunctionReward | HttpReward) -> Reward:
    """The reward of texts that settings describe."""
    if isinstance(config, FunctionReward):
        return called(f"reward '{name}'", config.function)
    return RemoteReward(name, config)


def called(what: str, path: str) -> Reward:
    """The function of the user's that ``path`` names; ``what`` it is for.

    Raises:
        ConfigError: it cannot be imported.
    """
    function = load_entry_point(path)

    def call(prompts: Sequence[str], answers: Sequence[str]) -> Sequence[float]:
        try:
            return function(prompts, answers)
        # Whatever it raises is the user's to mend.
        except Exception as error:
            raise RewardError(
                f"{what}: {path} failed on {len(answers)} answers: {said_of(error)}\n"
                "mend the function and go on with --resume auto"
            ) from error

    return call


def checked(what: str, scores: Any, count: int) -> list[float]:
    """Scores as finite floats, as many as there are answers; ``what`` gave them.

    Raises:
        RewardError: they are not.
    """
    try:
        found = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise RewardError(f"{what} returned no list of numbers: {str(scores)[:200]}") from error
    if len(found) != count:
        raise RewardError(f"{what} returned {len(found)} numbers for {count} answers")
    bad = [i for i, score in enumerate(found) if not math.isfinite(score)]
    if bad:
        raise RewardError(f"{what} returned {found[bad[0]]} for answer {bad[0]} of {count}; it must be finite")
    return found


class RemoteReward:
    """A reward behind HTTP: in batches, with time-outs, asked again after what may pass, left alone while it keeps failing."""

    def __init__(self, name: str, config: HttpReward) -> None:
        self._name = name
        self._config = config
        self._failures = 0
        self._open_until = 0.0
        headers = bearer(config.token_variable, f"reward '{name}' (token_variable)")
        self._poster = JsonClient(headers, config.timeout_s)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Scores of all answers.

        Raises:
            RewardError: the service refused, replied with something else, or kept failing for ``patience_s``.
        """
        size = self._config.rows_per_request
        scores: list[float] = []
        for first in range(0, len(answers), size):
            rows = slice(first, first + size)
            body = {"prompts": list(prompts[rows]), "answers": list(answers[rows])}
            scores += checked(f"reward '{self._name}'", self._ask(body), len(body["answers"]))
        return scores

    def _ask(self, body: dict[str, list[str]]) -> Any:
        """The reply to one batch."""
        patience = Backoff(self._config.patience_s)
        while True:
            self._wait_for_service(patience.deadline)
            try:
                response = self._poster.post(self._config.url, body)
                if not is_retryable(response):
                    self._failures = 0
                    return self._read(response)
                trouble, asked = f"status {response.status_code}", retry_after(response)
            except httpx.RequestError as error:
                trouble, asked = repr(error), 0.0
            self._failures += 1
            if self._failures >= self._config.open_after:
                self._open_until = time.monotonic() + self._config.pause_s
            pause = patience.pause(asked)
            if pause is None:
                raise RewardError(
                    f"reward '{self._name}': {self._config.url} kept failing for {self._config.patience_s:g} s, "
                    f"lastly with {trouble}; mend the service and go on with --resume auto"
                )
            time.sleep(pause)

    def _wait_for_service(self, deadline: float) -> None:
        """Leave a failing service alone for a while."""
        rest = min(self._open_until, deadline) - time.monotonic()
        if rest > 0:
            time.sleep(rest)

    def _read(self, response: httpx.Response) -> Any:
        """The rewards of a reply that is not to be asked for again."""
        text = response.text[:200]
        if not response.is_success:
            raise RewardError(f"reward '{self._name}': {self._config.url} refused with status {response.status_code}: {text}")
        try:
            return response.json()["rewards"]
        except (ValueError, KeyError, TypeError) as error:
            raise RewardError(f"reward '{self._name}': {self._config.url} sent no JSON with 'rewards': {text}") from error
