"""A judge to test against: a process of its own that speaks the OpenAI protocol, with the faults of real ones.

It grades by one rule: TRUE where the user's turn holds the word "right" (or another, see `Faults`), no verdict where it holds
"mumble", else FALSE. Every request is logged, so that tests can count who was asked what.

    with StubJudge(latency=0.2, failures=0.05) as stub:
        judge_items(items, stub.spec(), cache, bar)
        stub.log()
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import urllib.request
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from hba_ray.specs.sections.evaluate import JudgeSpec

MODEL, KEY, KEY_ENV = "stub-judge-1", "sk-stub-0123456789", "STUB_JUDGE_KEY"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Faults:
    """How the stub misbehaves. Shares are of requests, 0..1.

    Attributes:
        latency: seconds before each reply.
        failures: share answered with one of `failure_kinds`, in turn.
        retry_after: seconds in the Retry-After header of a 429; 0 sends none.
        drops: share whose connection is closed without a word.
        damaged: share answered 200 with half a JSON object.
        nested: a word that is answered 200 with more brackets than a parser can follow.
        schema, new_token_field: whether `response_format` and `max_completion_tokens` are understood.
        refuses: a word that makes a request be refused with 400.
        dead_after: requests after which all get 503.
        batch_polls: looks at a batch before it has ended.
        batch_loses: share of a batch's requests that fail.
        right: the word that the verdict TRUE hangs on.
        others: names of models that it answers to, beside MODEL.
    """

    latency: float = 0.0
    failures: float = 0.0
    failure_kinds: tuple[int, ...] = (429, 500, 503)
    retry_after: float = 0.0
    drops: float = 0.0
    damaged: float = 0.0
    nested: str = ""
    schema: bool = True
    new_token_field: bool = True
    refuses: str = ""
    dead_after: int | None = None
    batch_polls: int = 1
    batch_loses: float = 0.0
    right: str = "right"
    others: tuple[str, ...] = ()
    seed: int = 0


class StubJudge:
    """The stub as a child process, for the time of a `with` block."""

    def __init__(self, **faults: Any):
        self.faults = Faults(**faults)

    def __enter__(self) -> StubJudge:
        command = [sys.executable, "-m", "tests.helpers.stub_judge", json.dumps(asdict(self.faults))]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.address = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=10)
        assert self._process.stdout
        self._process.stdout.close()

    def spec(self, **changes: Any) -> JudgeSpec:
        """The spec of this judge; KEY has to be in the environment as KEY_ENV."""
        return JudgeSpec(model=MODEL, base_url=f"{self.address}/v1", key_env=KEY_ENV, poll_seconds=0.02).model_copy(update=changes)

    def log(self) -> list[dict[str, Any]]:
        """Requests so far: `status` (0 where the connection was dropped, -200 where the reply was damaged), `body`, `time`."""
        with urllib.request.urlopen(f"{self.address}/log") as reply:
            return json.load(reply)

    def graded(self) -> Counter[str]:
        """User's turn -> times that it was graded, probes left out."""
        return Counter(
            entry["body"]["messages"][1]["content"]
            for entry in self.log()
            if entry["status"] == 200 and "1 + 1" not in entry["body"]["messages"][1]["content"]
        )


class _Server:
    def __init__(self, faults: Faults):
        self.faults, self.chance = faults, random.Random(faults.seed)
        self.entries: list[dict[str, Any]] = []
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.failed = 0

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_needs_the_key])
        app.add_routes(
            [
                web.get("/log", self.log),
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/files", self.upload),
                web.get("/v1/files/{id}/content", self.download),
                web.post("/v1/batches", self.create_batch),
                web.get("/v1/batches", self.list_batches),
                web.get("/v1/batches/{id}", self.look_at_batch),
            ]
        )
        return app

    async def log(self, _: web.Request) -> web.Response:
        return web.json_response(self.entries)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}, {"id": "other", "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        entry = {"body": body, "status": 200, "time": asyncio.get_running_loop().time()}
        self.entries.append(entry)
        await asyncio.sleep(self.faults.latency)
        entry["status"] = status = self.status(body)
        if status == 0:
            assert request.transport
            request.transport.close()
            return web.Response()
        if status == -200:
            return web.Response(text='{"choices": [{"mess', content_type="application/json")
        if self.faults.nested and self.faults.nested in body["messages"][1]["content"]:
            entry["status"] = -200
            return web.Response(text='{"choices": ' + "[" * 100_000 + "]" * 100_000 + "}", content_type="application/json")
        if status == 200:
            return web.json_response(completion(body, self.faults.right))
        headers = {"Retry-After": str(self.faults.retry_after)} if status == 429 and self.faults.retry_after else {}
        return web.json_response(
            {"error": {"message": f"status {status} for {request.headers['Authorization']}"}}, status=status, headers=headers
        )

    def status(self, body: dict[str, Any]) -> int:
        faults, draw = self.faults, self.chance.random()
        if faults.dead_after is not None and len(self.entries) > faults.dead_after:
            return 503
        if body["model"] not in (MODEL, *faults.others):
            return 404
        unknown = ("response_format" in body and not faults.schema) or ("max_completion_tokens" in body and not faults.new_token_field)
        if unknown or (faults.refuses and faults.refuses in json.dumps(body)):
            return 400
        if draw < faults.failures:
            self.failed += 1
            return faults.failure_kinds[self.failed % len(faults.failure_kinds)]
        if draw < faults.failures + faults.drops:
            return 0
        return -200 if draw < faults.failures + faults.drops + faults.damaged else 200

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField) and form["purpose"] == "batch"
        return web.json_response(self.store(file.file.read().decode()))

    def store(self, text: str) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        self.files[name] = text
        return {
            "id": name,
            "object": "file",
            "bytes": len(text),
            "created_at": 0,
            "filename": "f",
            "purpose": "batch",
            "status": "processed",
        }

    async def download(self, request: web.Request) -> web.Response:
        text = self.files.get(request.match_info["id"])
        return web.Response(status=404) if text is None else web.Response(text=text)

    async def create_batch(self, request: web.Request) -> web.Response:
        batch = {"id": f"batch-{len(self.batches)}", "object": "batch", "created_at": 0, "status": "in_progress", **await request.json()}
        self.batches[batch["id"]] = {**batch, "polls": 0}
        return web.json_response(batch)

    async def list_batches(self, _: web.Request) -> web.Response:
        newest = [{name: value for name, value in batch.items() if name != "polls"} for batch in reversed(self.batches.values())]
        return web.json_response({"object": "list", "data": newest, "has_more": False})

    async def look_at_batch(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        batch["polls"] += 1
        lines = self.files[batch["input_file_id"]].splitlines()
        batch["request_counts"] = {"total": len(lines), "completed": 0, "failed": 0}
        if batch["polls"] >= self.faults.batch_polls and batch["status"] == "in_progress":
            batch["status"] = "completed"
            batch["output_file_id"] = self.store("\n".join(map(self.answer, lines)))["id"]
        return web.json_response({name: value for name, value in batch.items() if name != "polls"})

    def answer(self, line: str) -> str:
        asked = json.loads(line)
        status = 500 if self.chance.random() < self.faults.batch_loses else 200
        self.entries.append({"body": asked["body"], "status": status, "time": 0.0})
        body = completion(asked["body"], self.faults.right) if status == 200 else {"error": {"message": "lost"}}
        return json.dumps({"id": "r", "custom_id": asked["custom_id"], "response": {"status_code": status, "body": body}, "error": None})


@web.middleware
async def _needs_the_key(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.path.startswith("/v1/") and request.headers.get("Authorization") != f"Bearer {KEY}":
        return web.json_response({"error": {"message": f"wrong key {request.headers.get('Authorization')}"}}, status=401)
    return await handler(request)


def completion(body: dict[str, Any], right: str = "right") -> dict[str, Any]:
    """A chat completion by the stub's rule."""
    user = body["messages"][1]["content"]
    correct = right in user
    if "mumble" in user:
        text = "Well, it depends: true in part, false in part."
    elif "fluency" in body["messages"][0]["content"]:
        ratings = {"fluency": 4, "coherence": 5, "relevance": 5 if correct else 2}
        text = json.dumps(ratings) if "response_format" in body else "\n".join(f"{name}: {rating}" for name, rating in ratings.items())
    elif "response_format" in body:
        text = json.dumps({"explanation": "By the rule.", "correct": correct})
    else:
        text = f"By the rule.\nVerdict: {correct}"
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": f"{MODEL}-2026",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


async def _serve(faults: Faults) -> None:
    runner = web.AppRunner(_Server(faults).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Faults(**json.loads(sys.argv[1]))))
