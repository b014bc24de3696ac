"""Asking a service behind HTTP again: which replies may pass, how long to wait between attempts, and when to give up."""

from __future__ import annotations

import os
import time

import httpx

from dvpo_ray.errors import ConfigError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


class Patience:
    """The attempts at one request: waits that double, at least as long as the service asks for, until a deadline."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self._wait = FIRST_WAIT_S

    def pause(self, asked: float = 0.0) -> float | None:
        """Seconds to wait before the next attempt when the service asks for ``asked``; None when they would end too late."""
        pause, self._wait = max(self._wait, asked), min(2 * self._wait, LONGEST_WAIT_S)
        return None if time.monotonic() + pause > self.deadline else pause


def may_pass(response: httpx.Response) -> bool:
    """Whether the same request may be answered later: too many at a time, or a fault of the service."""
    return response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error


def retry_after(response: httpx.Response) -> float:
    """Seconds that the service asks to wait, 0 when it does not say."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0


def bearer(variable: str | None, where: str) -> dict[str, str]:
    """The header that carries the token in an environment variable; none without a variable.

    Raises:
        ConfigError: the variable is not set; ``where`` says what named it.
    """
    if variable is None:
        return {}
    token = os.environ.get(variable)
    if not token:
        raise ConfigError(f"{where}: the variable {variable} is not set; put the token there")
    return {"Authorization": f"Bearer {token}"}
