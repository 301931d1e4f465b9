"""The HTTP client that a judge is asked with: it waits and reads no longer than it may, and goes nowhere else.

Time-outs of HTTP libraries are for one read; an endpoint that sends a byte now and then would keep a request for ever.
Here an exchange has one deadline, from its place among the connections to the last byte of the body. The body is
counted as it is decompressed, and redirects, which would carry questions and answers to another host, are not followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import aiohttp
import httpx2
from openai import DefaultAioHttpClient

REPLY_BYTES = 2**20
"""Longest body of a reply, beside `TOKEN_BYTES` for each token of the judge's limit."""
TOKEN_BYTES = 64
"""Bytes of a token in JSON; words take some five, escaped ones up to thirty."""
UPLOAD_BYTES_A_SECOND = 50_000
"""Slowest upload that is waited for; the time of an exchange grows with what is sent."""
HEEDED = ("location", "retry-after", "retry-after-ms", "x-should-retry")
"""Headers that are handed on. All bodies are read as JSON, which is UTF-8 whatever their header says."""


class TooLarge(httpx2.RemoteProtocolError):
    """A body is longer than it may be."""


class LimitedClient(DefaultAioHttpClient):
    """Sends requests within a time and reads bodies up to a length.

    Args:
        places: requests under way at a time; the time of those that wait for a place does not run.
        seconds: for a whole exchange; `connect_seconds` of them for the connection.
        body_bytes: longest body after decompression.
    """

    def __init__(self, *, places: int, seconds: float, connect_seconds: float, body_bytes: int):
        super().__init__(
            limits=httpx2.Limits(max_connections=places, max_keepalive_connections=places),
            timeout=httpx2.Timeout(seconds, connect=connect_seconds, pool=None),
            follow_redirects=False,
        )
        self._places, self._seconds, self._body_bytes = asyncio.Semaphore(places), seconds, body_bytes

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """The response with its whole body; where `stream` is set and it succeeded, with its headers alone: `body_of` reads the rest.

        Raises:
            httpx2.RequestError: no response, none in time, or one that is too large or damaged.
        """
        seconds = self._seconds + int(request.headers.get("content-length", 0)) / UPLOAD_BYTES_A_SECOND
        async with self._places:
            try:
                async with asyncio.timeout(seconds):
                    with _errors_of_http(request):
                        response = await super().send(request, stream=True, **options)
                    if stream and response.is_success:
                        return response
                    body = b"".join([part async for part in body_of(response, self._body_bytes)])
            except TimeoutError:
                raise httpx2.ReadTimeout(f"no whole reply within {seconds:g} s", request=request) from None
        headers = {name: response.headers[name] for name in HEEDED if name in response.headers}
        return httpx2.Response(response.status_code, headers=headers | {"content-type": "application/json"}, content=body, request=request)


async def body_of(response: httpx2.Response, limit: int) -> AsyncGenerator[bytes]:
    """The parts of a body as they come, decompressed; the connection is closed at the end.

    Args:
        limit: bytes of the whole body.

    Raises:
        TooLarge: the body is longer.
        httpx2.RequestError: the connection is lost, or the body cannot be decompressed.
    """
    size = 0
    try:
        with _errors_of_http(response.request):
            async with aclosing(response.aiter_bytes()) as parts:
                async for part in parts:
                    size += len(part)
                    if size > limit:
                        raise TooLarge(f"the reply is larger than {limit / 1e6:.1f} MB", request=response.request)
                    yield part
    finally:
        await response.aclose()


@contextmanager
def _errors_of_http(request: httpx2.Request) -> Iterator[None]:
    """Gives those errors of aiohttp a name of httpx2's, by which openai knows them, that its adapter has none for."""
    try:
        yield
    except aiohttp.ClientError as cause:
        raise httpx2.RemoteProtocolError(f"the reply is no HTTP ({type(cause).__name__})", request=request) from None
