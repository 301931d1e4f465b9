"""A judge that means no good: an item gets a verdict or is unreadable, or the run ends with an error that says where; all of it soon."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hba_ray.errors import EnvironmentMissing, HbaError
from hba_ray.evaluation.retention import read_ratings
from hba_ray.judge.client import printable, without_echo
from hba_ray.judge.grade import JudgeItem, Verdict, check_judge, judge_items, verdict_table
from hba_ray.judge.prompts import read_verdict
from hba_ray.judge.replies import MalformedReply, read_body
from hba_ray.progress import progress
from hba_ray.specs.sections.evaluate import JudgeSpec
from tests.helpers import hostile as rule
from tests.helpers import hostile_replies as hostile
from tests.helpers.hostile_replies import CANDIDATE, PROBE, HostileReply, HostileServer, completion, sound, spelled


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with HostileServer(lambda line, body: sound()) as server:
        yield server


def items(count: int) -> list[JudgeItem]:
    return [JudgeItem(f"s{place}", "toy_answers", f"Question <{place}>?", CANDIDATE, "That.") for place in range(count)]


def grade(count: int, spec: JudgeSpec, cache: Path) -> list[Verdict]:
    with progress("judge", count, console=Console(file=io.StringIO())) as bar:
        return judge_items(items(count), spec, cache, bar)


def to_each(replies: list[HostileReply]) -> Callable[[str, bytes], HostileReply | bytes]:
    """Answers the item of each place with the reply of that place, and the probe soundly."""

    def answer(line: str, body: bytes) -> HostileReply | bytes:
        if PROBE in body:
            return sound()
        return replies[int(body.partition(b"Question <")[2].partition(b">")[0])]

    return answer


def assert_told(verdicts: list[Verdict]) -> None:
    """Each verdict is one, or says why there is none, in words that can be written down."""
    for verdict in verdicts:
        assert (verdict.correct is None) == bool(verdict.defect)
        if verdict.defect == "no reply":
            assert printable(verdict.detail) == verdict.detail and len(verdict.detail) < 500 and CANDIDATE not in verdict.detail
    assert verdict_table(verdicts).column("detail").to_pylist() == [verdict.detail for verdict in verdicts]


@rule.hostile("judge replies", 12, inputs=16)
@given(replies=st.lists(hostile.HOSTILE, min_size=16, max_size=16))
def test_whatever_comes_is_a_verdict_or_unreadable_or_a_located_error(server: HostileServer, replies: list[HostileReply]):
    server.answer = to_each(replies)
    began = time.monotonic()
    with TemporaryDirectory() as cache:
        try:
            assert_told(grade(len(replies), server.spec(concurrency=16), Path(cache)))
        except HbaError as error:
            assert error.where.startswith("judge ") and CANDIDATE not in str(error)
    assert time.monotonic() - began < 120


BATCH = {"id": "batch-1", "status": "completed", "output_file_id": "file-2", "metadata": {}, "request_counts": {"total": 3, "completed": 1}}
SOUND = {
    "POST /v1/chat/completions": completion(),
    "GET /v1/batches": {"data": [], "has_more": False},
    "POST /v1/files": {"id": "file-1"},
    "POST /v1/batches": BATCH | {"status": "in_progress", "output_file_id": None},
    "GET /v1/batches/batch-1": BATCH,
}
OUTPUT = "GET /v1/files/file-2/content"


def line_of_output(key: str = "key", text: str = "TRUE") -> bytes:
    return spelled({"custom_id": key, "response": {"status_code": 200, "body": completion(text)}})


@rule.hostile("judge replies", 12)
@given(route=st.sampled_from([*SOUND, OUTPUT]), draw=st.data())
def test_whatever_comes_of_the_batch_api_is_a_verdict_or_unreadable_or_a_located_error(server: HostileServer, route: str, draw):
    mutant = hostile.mutated(SOUND[route] if route in SOUND else json.loads(line_of_output())).map(lambda body: hostile.http(spelled(body)))
    replies = [draw.draw(st.one_of(mutant, mutant, hostile.HOSTILE))]

    def answer(line: str, body: bytes) -> HostileReply | bytes:
        line = line.partition("?")[0]
        if line == route and replies:
            return replies.pop()
        return hostile.http(spelled(SOUND[line]) if line in SOUND else line_of_output())

    server.answer = answer
    with TemporaryDirectory() as cache:
        try:
            assert_told(grade(3, server.spec(batch=True), Path(cache)))
        except HbaError as error:
            assert error.where.startswith("judge ") and CANDIDATE not in str(error)


@pytest.mark.parametrize("route", ["POST /v1/files", "POST /v1/batches"])
def test_a_batch_or_a_file_without_a_name_is_refused(route: str, server: HostileServer, tmp_path: Path):
    server.answer = lambda line, body: hostile.http(spelled(SOUND[line] | ({"id": ""} if line == route else {}) if line in SOUND else {}))
    with pytest.raises(EnvironmentMissing, match="judge "):
        grade(1, server.spec(batch=True), tmp_path)


def test_a_reply_byte_by_byte_ends_at_the_deadline(server: HostileServer, tmp_path: Path):
    server.answer = to_each([hostile.drip()])
    (verdict,) = grade(1, server.spec(timeout_seconds=1.5), tmp_path)
    assert verdict.defect == "no reply" and "no whole reply within 1.5" in verdict.detail
    assert server.last_connection_seconds < 60  # of the five minutes that it would have gone on


def test_the_time_for_a_place_is_not_the_time_of_the_reply(server: HostileServer, tmp_path: Path):
    slow = hostile.HostileReply((b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", spelled(completion("TRUE"))), pause=0.6)
    server.answer = to_each([slow] * 6)
    verdicts = grade(6, server.spec(timeout_seconds=3, concurrency=1), tmp_path)
    assert [verdict.correct for verdict in verdicts] == [True] * 6


@pytest.mark.parametrize("kind", ["body", "chunks", "headers", "interim"])
def test_a_reply_without_end_is_left_early_and_not_held_in_memory(kind: str, server: HostileServer, tmp_path: Path):
    server.answer = to_each([hostile.endless(kind)])
    server.sent = 0
    tracemalloc.start()
    try:
        (verdict,) = grade(1, server.spec(timeout_seconds=30 if kind in ("body", "chunks") else 1.5), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert verdict.defect == "no reply"
    assert peak < 16e6
    if kind in ("body", "chunks"):
        assert "larger than 1.2 MB" in verdict.detail and server.sent < 32e6


@pytest.mark.parametrize("twice", [False, True])
def test_a_small_reply_that_is_large_once_decompressed_is_left(twice: bool, server: HostileServer, tmp_path: Path):
    server.answer = to_each([hostile.bomb(2**26, twice=twice)])
    grade(0, server.spec(), tmp_path)  # what is imported for the first time is not measured
    tracemalloc.start()
    try:
        (verdict,) = grade(1, server.spec(timeout_seconds=60), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert verdict.defect == "no reply" and "larger than 1.2 MB" in verdict.detail
    assert peak < 16e6


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
def test_a_redirect_is_not_followed_and_is_named(status: str, server: HostileServer, tmp_path: Path):
    with HostileServer(lambda line, body: sound()) as elsewhere:
        pointing = hostile.http(b"", status=status, headers=(f"Location: {elsewhere.address}/v1/chat/completions",))
        server.answer = lambda line, body: sound() if PROBE in body else pointing
        (verdict,) = grade(1, server.spec(), tmp_path)
        assert verdict.defect == "no reply" and f"points to another address ({elsewhere.address}" in verdict.detail
        server.answer = lambda line, body: pointing
        with pytest.raises(EnvironmentMissing, match=r"not followed\n.*evaluate\.judge\.base_url"):
            check_judge(server.spec())
        assert not elsewhere.requests


def test_what_an_error_quotes_of_the_request_is_left_out(server: HostileServer, tmp_path: Path):
    def answer(line: str, body: bytes) -> bytes:
        if PROBE in body:
            return sound()
        said = json.loads(body)["messages"][1]["content"]
        return hostile.http(spelled({"error": {"message": f"\x1b[2J no: {CANDIDATE} {said}"}}), status="503 Busy")

    server.answer = answer
    with pytest.raises(EnvironmentMissing, match="has stopped answering") as raised:
        grade(9, server.spec(concurrency=1), tmp_path)
    assert "503 - ?[2J no[...]" in str(raised.value) and "\x1b" not in str(raised.value)
    assert not any(CANDIDATE[place : place + 15] in str(raised.value) for place in range(len(CANDIDATE) - 15))
    assert without_echo("short", "short") == "short"


@pytest.mark.parametrize("route", ["POST /v1/files", "POST /v1/batches", "GET /v1/batches/batch-1"])
def test_what_an_error_of_a_batch_quotes_of_the_requests_is_left_out(route: str, server: HostileServer, tmp_path: Path):
    def answer(line: str, body: bytes) -> bytes:
        line = line.partition("?")[0]
        if line != route:
            return hostile.http(spelled(SOUND[line]))
        if "batch-1" in route:
            return hostile.http(spelled(BATCH | {"status": "failed", "errors": {"data": [{"message": f"bad line: {CANDIDATE}"}]}}))
        return hostile.http(spelled({"error": {"message": f"bad line: {CANDIDATE}"}}), status="400 Bad")

    server.answer = answer
    with pytest.raises(EnvironmentMissing) as raised:
        grade(1, server.spec(batch=True, timeout_seconds=20), tmp_path)
    assert "bad line" in str(raised.value) and "[...]" in str(raised.value)
    assert not any(CANDIDATE[place : place + 15] in str(raised.value) for place in range(len(CANDIDATE) - 15))


@pytest.mark.parametrize(
    "body",
    [
        spelled(completion(usage={"prompt_tokens": "@overflow"})),
        spelled(completion(usage={"prompt_tokens": "@nan"})),
        spelled(completion(usage={"prompt_tokens": "@digits"})),
        spelled(completion(usage={"prompt_tokens": 10**12})),
        spelled(completion(usage={"completion_tokens": -1})),
        spelled(completion(usage="@deep")),
        spelled(completion(usage=[])),
        spelled(completion(choices=[])),
        spelled(completion(choices={"0": {}})),
        spelled(completion(choices=[{"message": None}])),
        spelled(completion(["TRUE"])),
        spelled(completion(model={"a": "b"})),
        spelled(completion(model="m" * 1000)),
        spelled("TRUE"),
        b"",
        b"TRUE",
        b"\xff\xfe",
        b"<html>TRUE</html>",
    ],
)
def test_a_reply_of_another_form_is_malformed_and_nothing_of_it_is_quoted(body: bytes):
    with pytest.raises(MalformedReply) as raised:
        read_body(body)
    assert len(str(raised.value)) < 200 and "mmm" not in str(raised.value) and "TRUE" not in str(raised.value)


def test_a_reply_without_counts_or_text_is_read_and_half_characters_are_replaced():
    reply = read_body(spelled(completion(None, usage=None, model=None)))
    assert (reply.text, reply.input_tokens, reply.output_tokens, reply.served_by) == ("", 0, 0, "")
    reply = read_body(spelled(completion("@half", usage={"prompt_tokens": 7.0})))
    assert (reply.text, reply.input_tokens) == ("?", 7)


@pytest.mark.parametrize("text", ["[" * 99_999, "```" + "\n" * 300_000 + "x", "\n" * 300_000 + "fluency", " " * 300_000 + "x", "9" * 9999])
def test_a_text_that_is_long_to_read_is_read_soon_and_states_nothing(text: str):
    began = time.monotonic()
    for read in (read_verdict, read_ratings):
        with pytest.raises(HbaError):
            read(text)
    assert time.monotonic() - began < 5


def test_lines_of_a_batch_are_told_apart_by_line_ends_alone_and_long_ones_are_left(server: HostileServer, tmp_path: Path):
    uploaded: list[str] = []

    def answer(line: str, body: bytes) -> HostileReply | bytes:
        if line == "POST /v1/files":
            uploaded.extend(json.loads(part)["custom_id"] for part in body.split(b"\r\n") for part in part.split(b"\n") if part[:1] == b"{")
        if line != OUTPUT:
            return hostile.http(spelled(SOUND[line.partition("?")[0]]))
        odd = json.dumps(
            {"custom_id": uploaded[0], "response": {"status_code": 200, "body": completion("so\u2028\u0085\nTRUE")}}, ensure_ascii=False
        )
        lines = [
            b"[" * 99_999,
            b"7",
            line_of_output(uploaded[1], "TRUE " + " " * 3_000_000),
            odd.encode(),
            line_of_output(uploaded[2], "FALSE"),
        ]
        return hostile.http(b"\n".join(lines))

    server.answer = answer
    verdicts = grade(3, server.spec(batch=True, timeout_seconds=20), tmp_path)
    assert [(verdict.correct, verdict.defect) for verdict in verdicts] == [(True, ""), (None, "no reply"), (False, "")]


def test_a_list_of_batches_without_end_is_left(server: HostileServer, tmp_path: Path):
    endless = {"data": [{"id": "other", "status": "completed"}], "has_more": True}
    server.answer = lambda line, body: hostile.http(spelled(endless if line.startswith("GET") else completion()))
    with pytest.raises(EnvironmentMissing, match="lists more than 10000 batches"):
        grade(1, server.spec(batch=True, timeout_seconds=20), tmp_path)


def test_models_of_another_form_leave_the_error_as_it_is(server: HostileServer):
    server.answer = lambda line, body: hostile.http(spelled({"data": [1, {"id": 2}]}), status="200 OK" if "models" in line else "404 No")
    with pytest.raises(EnvironmentMissing, match=r"no such model(.|\n)*does it end in /v1"):
        check_judge(server.spec())


def test_half_characters_in_an_answer_are_sent_as_question_marks(server: HostileServer, tmp_path: Path):
    server.answer = lambda line, body: sound("TRUE" if PROBE in body or b"half ?" in body else "FALSE")
    with progress("judge", 1, console=Console(file=io.StringIO())) as bar:
        (verdict,) = judge_items([JudgeItem("s", "toy_answers", "What?", "half \ud83d", "That.")], server.spec(), tmp_path, bar)
    assert verdict.correct is True
