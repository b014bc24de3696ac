"""A chat model behind an OpenAI-compatible endpoint: asked again after what may pass, with a deadline for every request."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from dvpo_ray.errors import ConfigError, JudgeError, RequestRefusedError
from dvpo_ray.io.http import Backoff, OversizedReplyError, bearer, is_retryable, post_json, retry_after, trusted_authorities
from dvpo_ray.io.json_files import parse_object

# What is wrong with the one request, as against the address, the model's name or the token.
REFUSALS = (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY)
# Replies to one request that are no completion. The service charges for each: patience with more would be paid for.
MALFORMED_REPLIES = 3
# More than any model reads or writes at once.
MOST_TOKENS = 10**8


@dataclass(frozen=True)
class JudgeSettings:
    """Who judges, and how it is asked.

    ``endpoint`` is the address that ``/chat/completions`` is appended to, for example ``http://127.0.0.1:8000/v1``;
    ``key_variable`` the environment variable with the API key. At most ``concurrency`` requests are under way; each attempt may
    take ``timeout_s`` seconds, all attempts at a request ``patience_s``.
    """

    endpoint: str
    model: str
    key_variable: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    concurrency: int = 8
    timeout_s: float = 120.0
    patience_s: float = 600.0

    def __post_init__(self) -> None:
        if any(mark in self.endpoint for mark in "@?#"):
            # Errors, and whoever reads them, would repeat a password or a key.
            raise ConfigError(
                "--endpoint holds a user, a query or a fragment (not shown): give the address alone, like "
                "http://127.0.0.1:8000/v1, and the API key by --key-variable"
            )
        try:
            url = httpx.URL(self.endpoint)
            usable = url.scheme in ("http", "https") and bool(url.host)
        except httpx.InvalidURL:
            usable = False
        if not usable:
            raise ConfigError(f"--endpoint '{self.endpoint}' is no address: give one like http://127.0.0.1:8000/v1")

    @property
    def asked_for(self) -> dict[str, Any]:
        """What of them every request says."""
        return {"model": self.model, "max_tokens": self.max_tokens, "temperature": self.temperature}

    @property
    def identity(self) -> dict[str, Any]:
        """What of them a verdict depends on: the same name at another address may be another judge.

        Not the limit of a reply: one that ended by itself would have ended so under another.
        """
        address = str(httpx.URL(self.endpoint)).rstrip("/")
        return {"endpoint": address, "model": self.model, "temperature": self.temperature}


@dataclass(frozen=True)
class Reply:
    """What came back; tokens as the service counts them, 0 when it does not say."""

    text: str
    finish_reason: str
    input_tokens: int
    output_tokens: int


class Endpoint:
    """Use as an asynchronous context; ``retries`` counts attempts after the first ones."""

    def __init__(self, settings: JudgeSettings) -> None:
        """Raises ConfigError when the key's variable is not set."""
        self._settings = settings
        self._url = f"{settings.endpoint.rstrip('/')}/chat/completions"
        headers = bearer(settings.key_variable, "--key-variable")
        limits = httpx.Limits(max_connections=settings.concurrency)
        self._client = httpx.AsyncClient(headers=headers, timeout=settings.timeout_s, limits=limits, verify=trusted_authorities())
        self.retries = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.aclose()

    async def ask(self, messages: list[dict[str, str]]) -> Reply:
        """The reply to a chat.

        Raises:
            RequestRefusedError: this one chat is not answered, for example because it is too long, or never by a completion.
            JudgeError: nothing is answered: the service refuses, or kept failing for ``patience_s``.
        """
        settings = self._settings
        body = {"messages": messages, **settings.asked_for}
        patience = Backoff(settings.patience_s)
        malformed = 0
        while True:
            try:
                response = await self._post(body)
                if not is_retryable(response):
                    return self._read(response)
                trouble, asked = f"status {response.status_code}: {response.text[:200]}", retry_after(response)
            except (httpx.RequestError, TimeoutError) as error:
                trouble, asked = repr(error), 0.0
            except MalformedReplyError as error:
                malformed += 1
                if malformed == MALFORMED_REPLIES:
                    raise RequestRefusedError(f"{self._url} replied {malformed} times with {error}") from error
                trouble, asked = repr(error), 0.0
            pause = patience.pause(asked)
            if pause is None:
                raise JudgeError(
                    f"{self._url} kept failing for {settings.patience_s:g} s, lastly with {trouble}; verdicts so far are kept: "
                    "mend the service and give the same command again"
                )
            self.retries += 1
            await asyncio.sleep(pause)

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        try:
            return await post_json(self._client, self._url, body, self._settings.timeout_s)
        except OversizedReplyError as error:
            # It may have been paid for.
            raise MalformedReplyError(str(error)) from error

    def _read(self, response: httpx.Response) -> Reply:
        """What a reply says that is not to be asked for again."""
        text = response.text[:200]
        if response.status_code in REFUSALS:
            raise RequestRefusedError(f"{self._url} refused with status {response.status_code}: {text}")
        if not response.is_success:
            raise JudgeError(
                f"{self._url} refused with status {response.status_code}: {text}; check --endpoint, --model and --key-variable"
            )
        return read_completion(response.content)


class MalformedReplyError(Exception):
    """A reply of another form; a proxy may have sent it, so it may pass."""


def read_completion(content: bytes) -> Reply:
    """What a chat completion says.

    Raises:
        MalformedReplyError: it is none.
    """
    try:
        completion = parse_object(content)
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        said = _said(choice["message"].get("content"))
        counts = [_tokens(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        return Reply(_storable(said), _storable(str(choice.get("finish_reason"))), *counts)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise MalformedReplyError(f"no chat completion ({type(error).__name__}): {content[:200]!r}") from error


def _tokens(said: Any) -> int:
    """A count as a service gives it; one that cannot be is as none: costs, and the limit to them, depend on it."""
    found = int(said or 0)
    return found if 0 <= found <= MOST_TOKENS else 0


def _said(content: Any) -> str:
    """The text of a message. One in parts has that of its parts; one of a model that only reasoned has none."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError("the content is no text")
    return content


def _storable(text: str) -> str:
    """Text without the lone surrogates that JSON can spell and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
