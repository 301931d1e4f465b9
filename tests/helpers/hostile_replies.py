"""What an endpoint may answer that means no good: bodies, headers and timings, and a server that sends them.

A reply is written to the socket as it stands, so that it need not be HTTP. It is small and slow in milliseconds, but what it
stands for is endless.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from hba_ray.specs.sections.evaluate import JudgeSpec

MODEL = "hostile-1"
PROBE = b"1 + 1"
CANDIDATE = "She hides her face behind both hands."
"""An answer of a person, which no message may repeat."""
RAW = {
    "@overflow": "1e999",
    "@digits": "9" * 5000,
    "@deep": "[" * 50_000 + "]" * 50_000,
    "@deeper": '{"a":' * 50_000,
    "@half": '"\\ud83d"',
    "@nan": "NaN",
    "@infinity": "-Infinity",
}
"""Marks in a body -> the JSON, or what looks like it, that is put in their place."""


@dataclass(frozen=True)
class HostileReply:
    """What is sent on a connection.

    Attributes:
        parts: bytes, one after the other.
        pause: seconds before each part but the first.
        endless: whether the last part is repeated until the other side hangs up.
        hangs: whether the connection stays open afterwards.
    """

    parts: tuple[bytes, ...]
    pause: float = 0.0
    endless: bool = False
    hangs: bool = False


def http(body: bytes, *, status: str = "200 OK", headers: tuple[str, ...] = (), length: int | None = None) -> bytes:
    """A response of HTTP, with the length of its body or the one that is given."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", "Connection: close", *headers]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def completion(text: Any = '{"explanation": "So.", "correct": true}', **changes: Any) -> dict[str, Any]:
    """The body of a sound chat completion, with some of its fields changed."""
    return {
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5},
        **changes,
    }


def spelled(body: Any) -> bytes:
    """A body as JSON, with what stands for the marks of `RAW`."""
    text = json.dumps(body)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode()


ODD = st.one_of(
    st.sampled_from([*RAW, None, True, -1, 0, 1.5, 10**30, "", "7", "seven", "\ud83d", "\x00\x1b[31m", [], {}, [[]], {"a": {}}]),
    st.text(max_size=8),
)
"""Values that stand where others should."""


@st.composite
def mutated(draw: st.DrawFn, sound: dict[str, Any]) -> dict[str, Any]:
    """A sound body in which one value, at any depth, is another one or is missing."""
    body = json.loads(json.dumps(sound))
    place: Any = body
    while True:
        key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if not (isinstance(place[key], (dict, list)) and place[key]) or draw(st.integers(0, 3)) == 0:
            break
        place = place[key]
    if draw(st.booleans()):
        place[key] = draw(ODD)
    else:
        del place[key]
    return body


CONTENTS = st.sampled_from(
    ["[" * 50_000, '{"correct":' * 50_000, "```" + "\n" * 20_000 + "x", " " * 20_000 + "x", "TRUE\nFALSE", "\x1b]0;x\x07TRUE", "<think>"]
)
BODIES = st.one_of(
    mutated(completion()).map(spelled),
    ODD.map(spelled),
    CONTENTS.map(lambda text: spelled(completion(text))),
    st.binary(max_size=40),
    st.integers(0, 150).map(lambda size: spelled(completion())[:size]),
    st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "cp500"]).map(lambda coding: spelled(completion()).decode().encode(coding)),
)
CODES = ("200", "201", "204", "206", "300", "302", "304", "307", "400", "404", "408", "409", "422", "429", "500", "503", "599", "999", "0")
STATUSES = st.sampled_from([*(f"{code} Said" for code in CODES), "abc"])
HEADERS = st.sampled_from(
    [
        "Content-Type: text/html",
        *(f"Content-Type: application/json; charset={name}" for name in ("hex", "idna", "undefined", "utf-16", "no-such", "rot13", "")),
        *(f"Content-Encoding: {name}" for name in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "no-such", ",".join(["gzip"] * 9))),
        *(f"Retry-After: {value}" for value in ("0", "-1", "nan", "1e999", "Wed, 99 Xyz 99999", "\x01")),
        "x-should-retry: true",
        "Location: http://127.0.0.1:9/elsewhere",
        "Location: \x1b[31m//",
        "Set-Cookie: =;;=\x7f",
        "Transfer-Encoding: chunked",
        "Content-Length: 3",
        "Content-Length: -1",
        "no colon",
        "x: " + "y" * 9000,
        ": no name",
    ]
)


@st.composite
def _responses(draw: st.DrawFn) -> HostileReply:
    body = draw(BODIES)
    length = draw(st.sampled_from([None, None, None, 0, len(body) // 2, len(body) + 9]))
    sound = draw(st.booleans())
    status = "200 OK" if sound else draw(STATUSES)
    return HostileReply((http(body, status=status, headers=tuple(draw(st.lists(HEADERS, max_size=2))), length=length),))


def drip(body: bytes = b" " * 10_000, pause: float = 0.03) -> HostileReply:
    """A response whose body comes byte by byte."""
    whole = http(body)
    head = len(whole) - len(body)
    return HostileReply((whole[:head], *(whole[place : place + 1] for place in range(head, len(whole)))), pause=pause, hangs=True)


def endless(kind: str) -> HostileReply:
    """A response that never ends: its `body`, its `chunks`, its `headers` or its `interim` responses."""
    part = b" " * 2**16
    start = {
        "body": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "headers": b"HTTP/1.1 200 OK\r\n",
        "interim": b"",
    }[kind]
    rest = {
        "body": part,
        "chunks": b"10000\r\n" + part + b"\r\n",
        "headers": b"a: b\r\n" * 999,
        "interim": b"HTTP/1.1 100 Continue\r\n\r\n" * 99,
    }
    return HostileReply((start, rest[kind]), endless=True)


def bomb(size: int, *, twice: bool = False) -> HostileReply:
    """A response that is small while compressed, and of `size` bytes after; compressed twice it is smaller still."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join([*(packer.compress(bytes(2**20)) for _ in range(size >> 20)), packer.flush()])
    coding = "gzip, gzip" if twice else "gzip"
    return HostileReply((http(gzip.compress(packed) if twice else packed, headers=(f"Content-Encoding: {coding}",)),))


HOSTILE = st.one_of(
    _responses(),
    _responses(),
    _responses(),
    st.binary(max_size=60).map(lambda noise: HostileReply((noise,))),
    st.sampled_from([drip(), HostileReply((), hangs=True), HostileReply(()), *map(endless, ("body", "chunks", "headers", "interim"))]),
    st.sampled_from([bomb(2**25), bomb(2**25, twice=True)]),
)
"""Replies of all kinds."""

Answer = Callable[[str, bytes], "HostileReply | bytes"]
"""Request line and body -> what is sent."""


class HostileServer:
    """A server in a thread of its own, for the time of a `with` block, that sends what a function gives.

    Attributes:
        answer: the function; replace it at will.
        requests: request lines so far, with how often each came.
        sent: bytes that were sent.
        last_connection_seconds: how long the last connection was held.
    """

    def __init__(self, answer: Answer):
        self.answer, self.requests, self.sent, self.last_connection_seconds = answer, Counter[str](), 0, 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> HostileServer:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = started.result(10)
        self.address = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def spec(self, **changes: Any) -> JudgeSpec:
        """The spec of a judge at this server; it is asked once, and waits a second."""
        settings: dict[str, Any] = {"key_env": None, "retries": 0, "timeout_seconds": 1.0, "poll_seconds": 0.01}
        return JudgeSpec(model=MODEL, base_url=f"{self.address}/v1", **settings | changes)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):  # the other side has hung up
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lengths = [int(line.partition(":")[2]) for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        body = await reader.readexactly(lengths[0]) if lengths else b""
        line = head.partition(" HTTP")[0]
        self.requests[line] += 1
        began = time.monotonic()
        reply = self.answer(line, body)
        reply = HostileReply((reply,)) if isinstance(reply, bytes) else reply
        try:
            for place, part in enumerate(reply.parts):
                await asyncio.sleep(reply.pause if place else 0)
                await self._write(writer, part)
            while reply.endless:
                await self._write(writer, reply.parts[-1])
            if reply.hangs:
                await reader.read()
        finally:
            self.last_connection_seconds = time.monotonic() - began

    async def _write(self, writer: asyncio.StreamWriter, part: bytes) -> None:
        writer.write(part)
        self.sent += len(part)
        await writer.drain()


def sound(text: str = "TRUE") -> bytes:
    """A response with a sound completion."""
    return http(spelled(completion(text)))
