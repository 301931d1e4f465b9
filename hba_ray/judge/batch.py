"""Grading through the Batch API: upload, wait, fetch; at half the price, within a day.

Nothing is stored on our side. The endpoint lists its batches, ours carry the judge's fingerprint, and each request in
them its item's key. So a run that was killed finds its batch again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from itertools import islice

from hba_ray.errors import EnvironmentMissing
from hba_ray.judge.client import Collector, Endpoint, NoReply, NotThere, back_off, printable, request_body, without_echo
from hba_ray.judge.replies import Batch, Batches, MalformedReply, Named, read_line

MARK = "hba_ray_judge"
"""The batch's metadata field that holds the judge's fingerprint."""
BATCH_REQUESTS = 20_000
"""Requests in a batch; OpenAI takes 50,000 and 200 MB."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
PATH = "/v1/chat/completions"
PAGE, MOST_PAGES = 100, 100
"""Batches on a page of an endpoint's list, and pages that are looked through."""
BATCH_SECONDS = 25 * 3600.0
"""How long a batch is waited for; OpenAI promises 24 hours."""
OUTPUT_SECONDS, OUTPUT_BYTES = 3600.0, 2**30
"""Time and size within which the output of a batch is read; it is read by the line, and never held as a whole."""

Turns = tuple[str, str]
"""The system's and the user's turn."""


async def grade_in_batches(endpoint: Endpoint, missing: Mapping[str, Turns], judge: str, collector: Collector) -> None:
    """Asks for what no earlier batch of this judge has asked for, and waits for all of it.

    Args:
        missing: key -> turns.
        judge: fingerprint of the judge.

    Raises:
        EnvironmentMissing: the endpoint has no Batch API, or will not take the batch.
    """
    left = dict(missing)
    for batch in await _batches_of(endpoint, judge):
        if left:
            await _collect(endpoint, await _ended(endpoint, batch, collector), left, collector)
    waiting = iter(tuple(left.items()))
    sent = []
    while part := dict(islice(waiting, BATCH_REQUESTS)):
        sent.append(await _send(endpoint, part, judge))
    for batch in sent:
        batch = await _ended(endpoint, batch, collector)
        if batch.status == "failed":
            raise EnvironmentMissing(
                endpoint.where,
                f"batch {printable(batch.id)} failed: {without_echo(_first_error(batch), _asked(missing))}",
                "mend that and run again",
            )
        await _collect(endpoint, batch, left, collector)
    for key in left:
        collector.fail(key, "no reply: the batch ended without it")


async def _batches_of(endpoint: Endpoint, judge: str) -> list[Batch]:
    """This judge's batches, the newest first."""
    found: list[Batch] = []
    after: dict[str, str] = {}
    for _ in range(MOST_PAGES):
        try:
            with endpoint.failures():
                raw = await endpoint.client.batches.with_raw_response.list(limit=PAGE, extra_query=after)
        except NotThere:
            raise EnvironmentMissing(endpoint.where, "has no Batch API", "give evaluate.judge.batch=false") from None
        page = endpoint.read(Batches, raw.text)
        found += [batch for batch in page.data if (batch.metadata or {}).get(MARK) == judge]
        if not (page.has_more and page.data):
            return found
        after = {"after": page.data[-1].id}
    raise EnvironmentMissing(endpoint.where, f"lists more than {PAGE * MOST_PAGES} batches", "give evaluate.judge.batch=false")


async def _send(endpoint: Endpoint, part: Mapping[str, Turns], judge: str) -> Batch:
    lines = [
        json.dumps(
            {
                "custom_id": key,
                "method": "POST",
                "url": PATH,
                "body": request_body(endpoint.spec, endpoint.dialect, *turns, endpoint.schema),
            }
        )
        for key, turns in part.items()
    ]
    content = "\n".join(lines).encode()
    with endpoint.failures(_asked(part)):
        raw = await endpoint.client.files.with_raw_response.create(file=("judge.jsonl", content), purpose="batch")
        file = endpoint.read(Named, raw.text)
        raw = await endpoint.client.batches.with_raw_response.create(
            input_file_id=file.id, endpoint=PATH, completion_window="24h", metadata={MARK: judge}
        )
    return endpoint.read(Batch, raw.text)


async def _ended(endpoint: Endpoint, batch: Batch, collector: Collector) -> Batch:
    """The batch, once it has ended."""
    deadline = time.monotonic() + BATCH_SECONDS
    while batch.status not in ENDED:
        if time.monotonic() > deadline:
            what = f"batch {printable(batch.id)} has not ended within {BATCH_SECONDS / 3600:g} hours"
            raise EnvironmentMissing(endpoint.where, what, "run again later, or give evaluate.judge.batch=false")
        counts = batch.request_counts
        state = printable(batch.status)
        collector.watch(f"{state}, {counts.completed} of {counts.total}" if counts else state)
        await asyncio.sleep(endpoint.spec.poll_seconds)
        with endpoint.failures():
            raw = await endpoint.client.batches.with_raw_response.retrieve(batch.id)
        batch = endpoint.read(Batch, raw.text)
    return batch


async def _collect(endpoint: Endpoint, batch: Batch, left: dict[str, Turns], collector: Collector) -> None:
    """Hands on the batch's replies and takes their keys out of `left`; asks again where the connection is lost."""
    if not batch.output_file_id:
        return
    try:
        async with asyncio.timeout(OUTPUT_SECONDS):
            for attempt in range(endpoint.spec.retries + 1):
                try:
                    return await _take_output(endpoint, batch.output_file_id, left, collector)
                except NoReply:
                    if attempt == endpoint.spec.retries:
                        raise
                    await asyncio.sleep(back_off(attempt))
    except TimeoutError:
        what = f"the output of batch {printable(batch.id)} did not come within {OUTPUT_SECONDS / 60:g} minutes"
        raise EnvironmentMissing(endpoint.where, what, "what is graded is kept; run again later") from None


async def _take_output(endpoint: Endpoint, file: str, left: dict[str, Turns], collector: Collector) -> None:
    try:
        async with aclosing(_lines(endpoint, file)) as lines:
            async for line in lines:
                try:
                    answered = read_line(line)
                except MalformedReply:  # a damaged line; its key stays unanswered
                    continue
                if answered and answered[0] in left:
                    del left[answered[0]]
                    collector.keep(*answered)
    except NotThere:  # outputs are kept for a month only
        return


async def _lines(endpoint: Endpoint, file: str) -> AsyncGenerator[bytes]:
    """The lines of an endpoint's file as they come; of one that is longer than a reply may be, its beginning."""
    from hba_ray.judge.limits import body_of

    line = bytearray()
    content = endpoint.client.files.with_streaming_response.content
    with endpoint.failures():
        async with content(file) as response, aclosing(body_of(response.http_response, OUTPUT_BYTES)) as parts:
            async for part in parts:
                first, *others = part.split(b"\n")
                line += first[: max(0, endpoint.reply_bytes - len(line))]
                for other in others:
                    yield bytes(line)
                    line = bytearray(other[: endpoint.reply_bytes])
    yield bytes(line)


def _asked(turns: Mapping[str, Turns]) -> str:
    """All that the judge is asked, of which no message quotes anything."""
    return printable("\n".join(user for _, user in turns.values()))


def _first_error(batch: Batch) -> str:
    found = batch.errors.data if batch.errors and batch.errors.data else []
    return printable(found[0].message or "no reason given")[:300] if found else "no reason given"
