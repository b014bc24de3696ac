"""Rewards behind HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx

from dvpo_ray.config.rewards import HttpReward
from dvpo_ray.errors import RewardError
from dvpo_ray.io.http import Backoff, JsonClient, bearer, is_retryable, retry_after
from dvpo_ray.rewards.base import RewardRow, Score, ragged_scores


class HttpChannel:
    """A service; the thread that waits for it holds up no other reward."""

    def __init__(self, settings: HttpReward, name: str) -> None:
        """Raises ConfigError when its token is missing."""
        self._service = RemoteReward(name, settings)

    async def __call__(self, rows: Sequence[RewardRow]) -> Sequence[Score]:
        """Its numbers, None where it says null."""
        return await asyncio.to_thread(self._service, [row.prompt for row in rows], [row.answer for row in rows])


class RemoteReward:
    """A reward behind HTTP: in batches, with time-outs, asked again after what may pass, left alone while it keeps failing."""

    def __init__(self, name: str, config: HttpReward) -> None:
        self._name = name
        self._config = config
        self._failures = 0
        self._open_until = 0.0
        headers = bearer(config.token_variable, f"reward '{name}' (token_variable)")
        self._poster = JsonClient(headers, config.timeout_s)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        """Scores of all answers, None where it abstains.

        Raises:
            RewardError: the service refused, replied with something else, or kept failing for ``patience_s``.
        """
        size = self._config.rows_per_request
        scores: list[float | None] = []
        for first in range(0, len(answers), size):
            rows = slice(first, first + size)
            body = {"prompts": list(prompts[rows]), "answers": list(answers[rows])}
            scores += self._checked(self._ask(body), len(body["answers"]))
        return scores

    def _checked(self, found: Any, count: int) -> list[float | None]:
        """One number or None an answer."""
        rows = ragged_scores(f"reward '{self._name}'", found, [1] * count).rows()
        return [float(row[0]) if row.size else None for row in rows]

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
