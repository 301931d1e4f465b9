"""Files that we have written ourselves, read back; where someone has damaged one, its name is said and the way to a new one.

What is known of a file without reading all of it: enough to notice a change, cheap enough for hundreds of gigabytes.

Tables of text are read whole, since an edit may be anywhere in them; of others the size and both ends
count; of clips, of which there are thousands, the size and the time of change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from hba_ray.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


Value = TypeVar("Value")
DO_AGAIN = "delete the step's folder to do it again"
"""The way out of a damaged file in the folder of a step."""


def from_json(kind: TypeAdapter[Value], text: str, *, where: str, what: str, way_out: str) -> Value:
    """
    Args:
        where: names the file.
        what: it is, where it is not what it should be ("not scores").

    Raises:
        DataError: with the first defect of the text.
    """
    try:
        return kind.validate_json(text)
    except ValidationError as cause:
        error = cause.errors()[0]
        defect = ": ".join(part for part in (".".join(map(str, error["loc"])), error["msg"]) if part)
        raise DataError(where, f"{what}: {defect}", way_out, reason=what) from cause


def read_parquet(file: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A table of a step.

    Raises:
        DataError: it is damaged, or gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as cause:
        raise DataError(str(file), f"cannot be read: {str(cause).splitlines()[0]}", DO_AGAIN, reason="corrupt file") from cause


EDGE_BYTES = 1 << 16
TEXTS = frozenset((".csv", ".json", ".jsonl", ".txt", ".yaml"))
"""Suffixes of files that are read whole."""
GONE = "gone"
ASKING = 16
"""Threads that ask for stamps."""


def file_digest(path: Path, *, whole: bool | None = None) -> str:
    """A digest of a file's size and content.

    Args:
        whole: look at every byte and not at both ends alone; by default that is decided by the suffix.
    """
    facts = path.stat()
    return _digest(path, path.suffix.lower() in TEXTS if whole is None else whole, facts.st_size, facts.st_mtime_ns)


def folder_digests(folder: Path) -> list[list[str]]:
    """Name and digest of each of a folder's files."""
    return [[path.name, file_digest(path)] for path in sorted(folder.iterdir()) if path.is_file()]


def stamp(path: Path) -> str:
    """Size and time of change; of a file that is gone, nothing that a stamp can be."""
    try:
        status = path.stat()
    except OSError:
        return GONE
    return f"{status.st_size} {status.st_mtime_ns}"


def stamps(paths: Sequence[Path]) -> list[str]:
    """The stamps of many files, in their order; asked for side by side, since a shared disk answers slowly and many at once."""
    share = max(1, -(-len(paths) // ASKING))
    with ThreadPoolExecutor(ASKING) as pool:
        parts = pool.map(lambda start: [stamp(path) for path in paths[start : start + share]], range(0, len(paths), share))
        return [one for part in parts for one in part]


@lru_cache(maxsize=4096)
def _digest(path: Path, whole: bool, size: int, changed: int) -> str:
    """Remembered for as long as the file is not `changed`: the trials of a sweep ask for the same files."""
    with path.open("rb") as file:
        if whole:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        ends = file.read(EDGE_BYTES)
        file.seek(max(0, size - EDGE_BYTES))
        return hashlib.sha256(str(size).encode() + ends + file.read(EDGE_BYTES)).hexdigest()[:32]
