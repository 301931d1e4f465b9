"""One request to a judge: how it is written, sent and repeated, and what its failures mean.

The openai client repeats after 408, 409, 429, 5xx, time-outs and lost connections, waiting as long as
Retry-After says or else exponentially. What is added here: replies that are no chat completion are
repeated too, all repetitions together end in time, and every failure is either the endpoint's (the run
stops) or the item's (`NoReply`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.judge.prompts import REPLY_IN_WORDS, REPLY_SCHEMA, ReplyFormat
from hba_ray.judge.replies import Form, MalformedReply, Models, Reply, read_body, read_form, without_half_characters
from hba_ray.specs.sections.evaluate import JudgeSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

ITEMS_PER_PLACE = 2
"""Items asked about at once, for each request that may be under way: while one waits to be tried again, another is sent."""
PROBE_RETRIES = 2
"""Repetitions of the first request: a wrong address should be known within seconds."""
CONNECT_SECONDS = 10.0
"""Longest wait for a connection: an address that swallows all that is sent to it is known within half a minute."""
LONGEST_BACK_OFF_SECONDS = 8.0
LONGEST_WAIT_SECONDS = 120.0
"""Longest wait that the openai client lets an endpoint ask for in Retry-After."""
ECHO_CHARACTERS = 12
"""So many characters in a row that an endpoint's message shares with the request are a quotation of it."""
UNPAID = "insufficient_quota"
"""OpenAI's code for a 429 that no waiting cures."""


@dataclass(frozen=True)
class Dialect:
    """The parts of the chat-completions protocol in which endpoints differ."""

    reply: ReplyFormat
    token_limit: str
    """The field that bounds the reply: OpenAI wants the newer, some servers know only the older."""


DIALECTS = tuple(Dialect(reply, limit) for reply in ("schema", "text") for limit in ("max_completion_tokens", "max_tokens"))


class NoReply(EnvironmentMissing):
    """One request came to nothing; others may still succeed."""


class RequestRefused(NoReply):
    """The endpoint does not take this request: 400 or 422."""


class NotThere(EnvironmentMissing):
    """The endpoint knows no such model, or there is no such address."""


def read_key(spec: JudgeSpec) -> str:
    """The key of the endpoint, from the environment.

    Raises:
        EnvironmentMissing: the variable is not set, or holds what no HTTP header can.
    """
    if spec.key_env is None:
        return "none"
    key = os.environ.get(spec.key_env, "").strip()
    if not key:
        raise EnvironmentMissing(
            "evaluate.judge.key_env",
            f"the environment variable {spec.key_env} is not set",
            f"export {spec.key_env}=..., or give evaluate.judge.key_env=null for an endpoint that asks for no key",
        )
    if not (key.isascii() and key.isprintable()):
        what = f"the environment variable {spec.key_env} holds line breaks or characters beyond ASCII, which no key does"
        raise EnvironmentMissing("evaluate.judge.key_env", what, f"export {spec.key_env}=... again, with the key alone")
    return key


def request_body(spec: JudgeSpec, dialect: Dialect, system: str, user: str, schema: Mapping[str, Any] = REPLY_SCHEMA) -> dict[str, Any]:
    """The body of a chat-completions request: a fresh conversation of one system and one user turn.

    Args:
        schema: of the reply, where the endpoint takes one.
    """
    body: dict[str, Any] = {
        "model": spec.model,
        "messages": [{"role": role, "content": without_half_characters(text)} for role, text in (("system", system), ("user", user))],
        dialect.token_limit: spec.max_tokens,
    }
    if dialect.reply == "schema":
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if spec.temperature is not None:
        body["temperature"] = spec.temperature
    if spec.reasoning_effort is not None:
        body["reasoning_effort"] = spec.reasoning_effort
    return body


class Endpoint:
    """An open connection to a judge, once `probe` has found it in order.

    Args:
        schema: of the replies to all that is asked after the probe.

    Attributes:
        reply_bytes: longest body of a reply.
    """

    def __init__(self, spec: JudgeSpec, schema: Mapping[str, Any] = REPLY_SCHEMA):
        from openai import AsyncOpenAI

        from hba_ray.judge.limits import REPLY_BYTES, TOKEN_BYTES, LimitedClient

        self.spec, self.schema = spec, schema
        self.where = f"judge {spec.model} at {spec.base_url}"
        self._key = read_key(spec)
        self.reply_bytes = REPLY_BYTES + TOKEN_BYTES * spec.max_tokens
        client = LimitedClient(  # one connection for each request under way: who waits for a second try holds no place
            places=spec.concurrency,
            seconds=spec.timeout_seconds,
            connect_seconds=min(CONNECT_SECONDS, spec.timeout_seconds),
            body_bytes=self.reply_bytes,
        )
        self.client: AsyncOpenAI = AsyncOpenAI(
            api_key=self._key, base_url=spec.base_url, max_retries=spec.retries, timeout=client.timeout, http_client=client
        )
        self.dialect = DIALECTS[0]

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def probe(self) -> None:
        """One small request, which finds out whether endpoint, key and model are there and settles the dialect.

        Raises:
            EnvironmentMissing: one of them is not.
        """
        client = self.client.with_options(max_retries=PROBE_RETRIES)
        refusal = ""
        for self.dialect in DIALECTS:
            if self.spec.reply_format not in ("auto", self.dialect.reply):
                continue
            try:
                system = f"This tests the connection. {REPLY_IN_WORDS[self.dialect.reply]}"
                await self._reply(client, REPLY_SCHEMA, system, "Is 1 + 1 = 2?", PROBE_RETRIES)
            except RequestRefused as refused:
                refusal = refused.what
            except NoReply as cause:
                way_out = cause.way_out or "check evaluate.judge.base_url, and that the endpoint is up"
                raise EnvironmentMissing(self.where, cause.what, way_out) from None
            except NotThere as cause:
                raise EnvironmentMissing(self.where, cause.what, await self._models_hint()) from None
            else:
                return
        raise EnvironmentMissing(self.where, f"takes no request of ours: {refusal}", "check evaluate.judge.model and the judge's settings")

    async def ask(self, system: str, user: str) -> Reply:
        """The reply to a fresh conversation.

        Raises:
            NoReply: none came, or none that is a chat completion.
            EnvironmentMissing: the endpoint will answer no other request either.
        """
        return await self._reply(self.client, self.schema, system, user, self.spec.retries)

    async def _reply(self, client: AsyncOpenAI, schema: Mapping[str, Any], system: str, user: str, retries: int) -> Reply:
        """The reply, asked for again where it is damaged."""
        seconds = (retries + 1) * ITEMS_PER_PLACE * self.spec.timeout_seconds + retries * LONGEST_WAIT_SECONDS
        defect = ""
        try:
            async with asyncio.timeout(seconds):
                for attempt in range(retries + 1):
                    if attempt:
                        await asyncio.sleep(back_off(attempt - 1))
                    text = await self._post(client, schema, system, user)
                    try:
                        return read_body(text)
                    except MalformedReply as cause:
                        defect = str(cause)
        except TimeoutError:
            raise NoReply(self.where, f"no reply within {seconds:g} s, all repetitions included") from None
        raise NoReply(self.where, f"damaged replies only, the last of them {defect}")

    async def _post(self, client: AsyncOpenAI, schema: Mapping[str, Any], system: str, user: str) -> str:
        with self.failures(user):
            body = request_body(self.spec, self.dialect, system, user, schema)
            # `chat.completions.create` walks through the types of every field, a quarter of a request's CPU time; the reply is checked here
            return await client.post("/chat/completions", body=body, cast_to=str)

    async def _models_hint(self) -> str:
        """The names that the endpoint lists, the nearest first."""
        try:
            with self.failures():
                listed = self.read(Models, await self.client.get("/models", cast_to=str))
        except EnvironmentMissing:
            return "check evaluate.judge.base_url (does it end in /v1?) and evaluate.judge.model"
        names = [printable(model.id) for model in listed.data]
        near = get_close_matches(self.spec.model, names, n=1, cutoff=0.4)
        return f"give one of its models as evaluate.judge.model: {', '.join(dict.fromkeys([*near, *names[:8]]))}"

    def read(self, form: type[Form], text: str) -> Form:
        """What the endpoint has answered beside chat completions.

        Raises:
            EnvironmentMissing: it is of another form.
        """
        try:
            return read_form(form, text)
        except MalformedReply as cause:
            what = f"answers with what is no {form.__name__} of OpenAI's protocol ({cause})"
            raise EnvironmentMissing(self.where, what, "check evaluate.judge.base_url") from None

    @contextmanager
    def failures(self, asked: str = "") -> Iterator[None]:
        """Turns the client's errors into ours for the time of the block; no message of ours holds the key.

        Args:
            asked: what was sent, of which no message quotes anything either.
        """
        import httpx2
        import openai

        try:
            yield
        except httpx2.RequestError as cause:  # of a body that is read as it comes; all others are the client's
            raise NoReply(self.where, f"no reply: {self._redacted(cause, asked)}") from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as cause:
            what = f"refuses the key in {self.spec.key_env}" if self.spec.key_env else "asks for a key, and evaluate.judge.key_env is null"
            raise EnvironmentMissing(self.where, f"{what} ({cause.status_code})", "check the key and what it may use") from None
        except openai.NotFoundError as cause:
            raise NotThere(self.where, f"no such model or address: {self._redacted(cause, asked)}") from None
        except (openai.BadRequestError, openai.UnprocessableEntityError) as cause:
            raise RequestRefused(self.where, f"request refused: {self._redacted(cause, asked)}") from None
        except openai.APIError as cause:
            if cause.code == UNPAID:
                raise EnvironmentMissing(self.where, "the account has no credit left", "what is graded is kept; run again later") from None
            if isinstance(cause, openai.APIStatusError) and cause.response.is_redirect:
                elsewhere = printable(str(cause.response.headers.get("location")))[:300]
                what = f"no reply: points to another address ({elsewhere}), which is not followed"
                raise NoReply(self.where, what, "give that address as evaluate.judge.base_url, if it is right") from None
            # "Request timed out" is the client's word for refused and lost connections too; what lies beneath says which it was
            beneath = cause.__cause__ if isinstance(cause, openai.APIConnectionError) else None
            raise NoReply(self.where, f"no reply: {self._redacted(beneath if beneath and str(beneath) else cause, asked)}") from None

    def _redacted(self, cause: BaseException, asked: str) -> str:
        """A server's message in one line of at most 300 characters, with the key and what it quotes of the request blacked out."""
        message = printable(str(cause))
        return without_echo((message.replace(self._key, "[key]") if self.spec.key_env else message)[:300], printable(asked))


def back_off(failures: int) -> float:
    """Seconds before the next try, after so many that have failed before the last one."""
    return min(0.5 * 2**failures, LONGEST_BACK_OFF_SECONDS)


def printable(text: str) -> str:
    """A text in one line, without control characters, which a terminal would obey.

    >>> printable("red \\x1b[31m\\n text")
    'red ?[31m text'
    """
    return " ".join("".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in text).split())


def without_echo(message: str, asked: str) -> str:
    """A message in which "[...]" stands for all that it quotes of what was asked.

    >>> without_echo("bad input: She apologises to him.", "Grade her words. She apologises to him.")
    'bad input:[...]'
    """
    echoed = [False] * len(message)
    for start in range(len(message) - ECHO_CHARACTERS + 1):
        if message[start : start + ECHO_CHARACTERS] in asked:
            echoed[start : start + ECHO_CHARACTERS] = [True] * ECHO_CHARACTERS
    return "".join("[...]" if is_echo else "".join(letters) for is_echo, letters in _runs(message, echoed))


def _runs(message: str, echoed: list[bool]) -> Iterator[tuple[bool, list[str]]]:
    """The parts of a message that are quoted and that are not, in their order."""
    for is_echo, pairs in groupby(zip(echoed, message, strict=True), key=itemgetter(0)):
        yield is_echo, [letter for _, letter in pairs]


class Collector(Protocol):
    """Receives the outcome of every request."""

    def keep(self, key: str, reply: Reply) -> None:
        """Takes a reply."""
        ...

    def fail(self, key: str, what: str) -> None:
        """Takes note that there is no reply; `what` says why."""
        ...

    def watch(self, state: str) -> None:
        """Shows the state of a batch to people."""
        ...


async def ask_all(endpoint: Endpoint, turns: Mapping[str, tuple[str, str]], collector: Collector) -> None:
    """Asks for every key, with as many requests under way as the spec allows.

    Args:
        turns: key -> the system's and the user's turn.

    Raises:
        EnvironmentMissing: the endpoint has stopped answering; what was collected is kept.
        OSError: the collector's.
    """
    waiting = iter(turns.items())
    failures_in_a_row = 0

    async def work() -> None:
        nonlocal failures_in_a_row
        for key, (system, user) in waiting:
            try:
                collector.keep(key, await endpoint.ask(system, user))
                failures_in_a_row = 0
            except NoReply as cause:
                collector.fail(key, cause.what)
                failures_in_a_row += 1
                if failures_in_a_row > endpoint.spec.concurrency:
                    way_out = "run again later; what is graded is kept"
                    raise EnvironmentMissing(endpoint.where, f"has stopped answering: {cause.what}", way_out) from None

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(ITEMS_PER_PLACE * endpoint.spec.concurrency, len(turns))):
                group.create_task(work())
    except* (HbaError, OSError) as stopped:
        raise stopped.exceptions[0] from None
