"""What a judge has said, on disk: one line an item, added and never changed, named by the item's content.

    <cache>/judge-<fingerprint>.jsonl

A judge is its model, settings and prompts; another of them has another file. A run holds the file's
lock, which the system frees when its holder dies, so nothing is asked twice. A line that a crash
tore is left as it is and its item asked again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hba_ray.errors import DataError, EnvironmentMissing


@dataclass(frozen=True)
class Grade:
    """What a judge said of one item.

    Attributes:
        correct: the verdict; None where the reply states none.
        defect: why it states none, countable; empty where it does.
        reply: the judge's text.
        served_by: the model that the endpoint says has answered.
        input_tokens, output_tokens: as billed; 0 where the endpoint does not say.
    """

    correct: bool | None
    defect: str
    reply: str
    served_by: str
    input_tokens: int
    output_tokens: int


class GradeCache:
    """Grades by key. Open it with `open_cache`; only then may `add` be called."""

    def __init__(self, file: Path):
        self.file = file
        self._grades: dict[str, Grade] = {}
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        text = file.read_bytes()
        self._needs_newline = bool(text) and not text.endswith(b"\n")
        for number, line in enumerate(text.split(b"\n"), start=1):
            self._take(line, number)

    def _take(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
        except ValueError:  # torn by a crash, or empty
            return
        try:
            self._grades[record["key"]] = Grade(**record["grade"])
        except (KeyError, TypeError) as cause:
            raise DataError(
                f"{self.file}:{number}", f"is no grade: {cause!r}", "delete this line; its item is asked again", reason="corrupt file"
            ) from None

    def __contains__(self, key: str) -> bool:
        return key in self._grades

    def __getitem__(self, key: str) -> Grade:
        return self._grades[key]

    def __len__(self) -> int:
        return len(self._grades)

    def add(self, key: str, grade: Grade, item: dict[str, Any]) -> None:
        """Writes a grade, at once and whole; `item` is for people who read the file."""
        record = {"key": key, "grade": asdict(grade), "item": item, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        line = json.dumps(record).encode() + b"\n"
        if self._needs_newline:
            line, self._needs_newline = b"\n" + line, False
        try:
            written = os.write(self._descriptor, line)
        except OSError as cause:
            raise EnvironmentMissing(
                str(self.file), f"cannot be written to: {cause.strerror}", "run again; what is written is kept"
            ) from None
        if written != len(line):
            raise EnvironmentMissing(str(self.file), "the disk is full", "make room and run again; what is written is kept")
        self._grades[key] = grade

    def close(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)


@contextmanager
def open_cache(folder: Path, fingerprint: str, *, wait_seconds: float, on_wait: Callable[[], None]) -> Iterator[GradeCache]:
    """The cache of one judge, held for the time of the block.

    Args:
        fingerprint: of the judge.
        wait_seconds: how long to wait for another run that holds it.
        on_wait: called once where there is one.

    Raises:
        EnvironmentMissing: another run holds it for longer, or the folder cannot be written to.
        DataError: the file holds what is no grade.
    """
    from filelock import FileLock, Timeout

    file = folder / f"judge-{fingerprint}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise EnvironmentMissing(str(file), "another run of the same judge holds it", "wait for that run, or stop it") from None
    except OSError as cause:
        raise EnvironmentMissing(str(folder), f"cannot be written to: {cause.strerror}", "give another folder") from None
    try:
        cache = GradeCache(file)
        try:
            yield cache
        finally:
            cache.close()
    finally:
        lock.release()
