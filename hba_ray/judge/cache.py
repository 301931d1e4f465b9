"""What judges have said, on disk, so that nothing is asked twice.

    <cache>/judge-<fingerprint>.jsonl

A judge is its model, settings and prompts, and each judge has its own file. A line is the grade of one item, under a key
that the item's content decides; lines are added and never changed. A run holds the judge's lock while it adds, which the
system frees when the run dies. A line that a crash tore is left as it is, and its item asked again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from hba_ray.errors import DataError
from hba_ray.store.folders import append_line, claimed
from hba_ray.store.mirror import mirror_of


@dataclass(frozen=True, config=ConfigDict(strict=True))
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
    """Grades by key. Open it with `open_cache`, which keeps other runs from adding at the same time.

    Raises:
        DataError: a line of the file is JSON, but no grade.
    """

    def __init__(self, file: Path):
        self.file = file
        self._grades: dict[str, Grade] = {}
        for number, line in enumerate(file.read_bytes().split(b"\n") if file.exists() else (), start=1):
            self._take(line, number)

    def _take(self, line: bytes, number: int) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # torn by a crash, or empty; or no line of ours, nested without end
            return
        try:
            self._grades[record["key"]] = Grade(**record["grade"])
        except (KeyError, TypeError, ValidationError) as cause:
            where, what = f"{self.file}:{number}", f"is no grade ({type(cause).__name__})"
            raise DataError(where, what, "delete this line; its item is asked again", reason="corrupt file") from None

    def __contains__(self, key: str) -> bool:
        return key in self._grades

    def __getitem__(self, key: str) -> Grade:
        return self._grades[key]

    def __len__(self) -> int:
        return len(self._grades)

    def add(self, key: str, grade: Grade, item: dict[str, Any]) -> None:
        """Writes a grade at once; `item` is for people who read the file."""
        record = {"key": key, "grade": asdict(grade), "item": item, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        append_line(self.file, record, durable=False)  # a grade that a power cut takes is asked for again
        self._grades[key] = grade


@contextmanager
def open_cache(folder: Path, fingerprint: str, *, wait_seconds: float, on_wait: Callable[[], None]) -> Iterator[GradeCache]:
    """The cache of one judge, held for the time of the block.

    Args:
        fingerprint: of the judge.
        wait_seconds: how long to wait for another run that holds it.
        on_wait: called once before waiting for such a run.

    Raises:
        EnvironmentMissing: another run holds it for longer, or the disk is full or cannot be written to; what is written is kept.
        DataError: as `GradeCache`.
    """
    name = f"judge-{fingerprint}"
    lock = folder / f".{name}"
    with claimed(lock, wait_seconds=wait_seconds, on_wait=on_wait):
        yield GradeCache((folder if mirror_of(folder) is None else lock) / f"{name}.jsonl")  # with a lease go files of its folder
