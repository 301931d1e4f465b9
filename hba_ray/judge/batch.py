"""Grading through the Batch API: upload, wait, fetch; at half the price, within a day.

Nothing is stored on our side. The endpoint lists its batches, ours carry the judge's fingerprint, and each request in
them its item's key. So a run that was killed finds its batch again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from hba_ray.errors import EnvironmentMissing
from hba_ray.judge.client import Collector, Endpoint, MalformedReply, NotThere, read_completion, request_body

if TYPE_CHECKING:
    from openai.types import Batch

MARK = "hba_ray_judge"
"""The batch's metadata field that holds the judge's fingerprint."""
BATCH_REQUESTS = 20_000
"""Requests in a batch; OpenAI takes 50,000 and 200 MB."""
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
PATH = "/v1/chat/completions"

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
            raise EnvironmentMissing(endpoint.where, f"batch {batch.id} failed: {_first_error(batch)}", "mend that and run again")
        await _collect(endpoint, batch, left, collector)
    for key in left:
        collector.fail(key, "no reply: the batch ended without it")


async def _batches_of(endpoint: Endpoint, judge: str) -> list[Batch]:
    """This judge's batches, the newest first."""
    try:
        with endpoint.failures():
            return [batch async for batch in endpoint.client.batches.list(limit=100) if (batch.metadata or {}).get(MARK) == judge]
    except NotThere:
        raise EnvironmentMissing(endpoint.where, "has no Batch API", "give evaluate.judge.batch=false") from None


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
    with endpoint.failures():
        file = await endpoint.client.files.create(file=("judge.jsonl", "\n".join(lines).encode()), purpose="batch")
        return await endpoint.client.batches.create(input_file_id=file.id, endpoint=PATH, completion_window="24h", metadata={MARK: judge})


async def _ended(endpoint: Endpoint, batch: Batch, collector: Collector) -> Batch:
    """The batch, once it has ended."""
    while batch.status not in ENDED:
        counts = batch.request_counts
        collector.watch(f"{batch.status}, {counts.completed} of {counts.total}" if counts else batch.status)
        await asyncio.sleep(endpoint.spec.poll_seconds)
        with endpoint.failures():
            batch = await endpoint.client.batches.retrieve(batch.id)
    return batch


async def _collect(endpoint: Endpoint, batch: Batch, left: dict[str, Turns], collector: Collector) -> None:
    """Hands on the batch's replies and takes their keys out of `left`."""
    if not batch.output_file_id:
        return
    try:
        with endpoint.failures():
            text = (await endpoint.client.files.content(batch.output_file_id)).text
    except NotThere:  # outputs are kept for a month only
        return
    for key, body in _bodies(text):
        if key in left:
            try:
                reply = read_completion(body)
            except MalformedReply:
                continue
            del left[key]
            collector.keep(key, reply)


def _bodies(text: str) -> Iterator[tuple[str, Any]]:
    """(key, body of the reply) of each request that succeeded."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
            key, response = record["custom_id"], record["response"]
            if response["status_code"] == 200:
                yield key, response["body"]
        except (ValueError, KeyError, TypeError):  # a damaged line; its key stays unanswered
            continue


def _first_error(batch: Batch) -> str:
    found = batch.errors.data if batch.errors and batch.errors.data else []
    return (found[0].message or "no reason given")[:300] if found else "no reason given"
