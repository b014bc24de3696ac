"""Asking a service behind HTTP again: which replies may pass, how long to wait between attempts, and when to give up."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
import zlib
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import httpx

from dvpo_ray.errors import ConfigError

# Far more than scores of a batch, or what a judge says.
MOST_REPLY = 16 * 2**20
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# What a header can carry: printable ASCII without blanks.
TOKEN = re.compile(r"[!-~]+")


class Backoff:
    """The attempts at one request: waits that double, at least as long as the service asks for, until a deadline."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self._wait = FIRST_WAIT_S

    def pause(self, asked: float = 0.0) -> float | None:
        """Seconds to wait before the next attempt when the service asks for ``asked``; None when they would end too late."""
        pause, self._wait = max(self._wait, asked), min(2 * self._wait, LONGEST_WAIT_S)
        return None if time.monotonic() + pause > self.deadline else pause


def is_retryable(response: httpx.Response) -> bool:
    """Whether the same request may be answered later: it came too slowly, too many at a time, or the service has a fault."""
    return response.status_code in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS) or response.is_server_error


def retry_after(response: httpx.Response) -> float:
    """Seconds that the service asks to wait, by their number or by a date; 0 when it does not say."""
    said = response.headers.get("Retry-After", "0")
    try:
        return max(0.0, float(said))
    except ValueError:
        return _seconds_until(said)


def _seconds_until(date: str) -> float:
    """Seconds until an HTTP date, 0 when it is past or none."""
    try:
        at = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time.time())


@cache
def trusted_authorities() -> ssl.SSLContext:
    """Whom HTTPS trusts. Reading their certificates takes a tenth of a second: once, and not for every client."""
    return httpx.create_ssl_context()


class OversizedReplyError(httpx.DecodingError):
    """A reply is larger than any honest one, packed or unpacked."""


async def post_json(client: httpx.AsyncClient, url: str, body: Any, seconds: float) -> httpx.Response:
    """The reply to a JSON body, whole within so many seconds and of ``MOST_REPLY`` bytes at most, unpacked.

    httpx's own time-outs are about one read each: a reply that comes a byte at a time keeps them all. Nor does it limit what it
    unpacks: a megabyte of gzip can be a gigabyte.

    Raises:
        httpx.RequestError: there was none, it was not whole in time, too large, or cannot be unpacked.
        TimeoutError: as long as nothing came.
    """
    async with asyncio.timeout(seconds), client.stream("POST", url, json=body, headers={"Accept-Encoding": "gzip"}) as reply:
        packing = reply.headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in ("identity", "gzip", ""):
            raise httpx.DecodingError(f"the reply is packed by '{packing[:40]}', which was not asked for", request=reply.request)
        content = bytearray()
        # 16 and above tell zlib that it is gzip.
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS) if packing == "gzip" else None
        async for piece in reply.aiter_raw():
            try:
                content += piece if unpacker is None else unpacker.decompress(piece, MOST_REPLY + 1 - len(content))
            except zlib.error as error:
                raise httpx.DecodingError(f"the reply is no whole gzip: {error}", request=reply.request) from error
            if len(content) > MOST_REPLY:
                raise OversizedReplyError(f"the reply has more than {MOST_REPLY:,} bytes", request=reply.request)
        if unpacker is not None and content and not unpacker.eof:
            raise httpx.DecodingError("the reply is no whole gzip: its end is missing", request=reply.request)
        headers = {name: value for name, value in reply.headers.items() if name not in ("content-encoding", "content-length")}
        return httpx.Response(reply.status_code, headers=headers, content=bytes(content), request=reply.request)


class JsonClient:
    """Posts JSON, one request at a time, and waits so many seconds for the whole reply, headers and all."""

    def __init__(self, headers: Mapping[str, str], seconds: float) -> None:
        self._seconds = seconds
        self._runner = asyncio.Runner()
        self._client = httpx.AsyncClient(headers=headers, timeout=seconds, verify=trusted_authorities())

    def post(self, url: str, body: Any) -> httpx.Response:
        """The reply.

        Raises:
            httpx.RequestError: there was none, it was not whole in time, or cannot be unpacked.
        """
        return self._runner.run(self._post(url, body))

    async def _post(self, url: str, body: Any) -> httpx.Response:
        try:
            return await post_json(self._client, url, body, self._seconds)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole reply within {self._seconds:g} s") from None


def bearer(variable: str | None, where: str) -> dict[str, str]:
    """The header that carries the token in an environment variable; none without a variable.

    Raises:
        ConfigError: the variable is not set, or holds what no header can carry; ``where`` says what named it.
    """
    if variable is None:
        return {}
    token = os.environ.get(variable)
    if not token:
        raise ConfigError(f"{where}: the variable {variable} is not set; put the token there")
    if not TOKEN.fullmatch(token):
        # The HTTP library would say so too, with the token in its message.
        raise ConfigError(
            f"{where}: the variable {variable} holds blanks, line ends or characters other than ASCII (its value is not shown); "
            "put the token alone there"
        )
    return {"Authorization": f"Bearer {token}"}
