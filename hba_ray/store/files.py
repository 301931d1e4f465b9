"""What is known of files: tables and JSON of a step read back, and names for content.

A file that we wrote and someone has damaged is refused with its name and the way to a new one.

Files that a result depends on are known by all their bytes (`file_digest`); a digest is remembered, so that weights of many
gigabytes are read once. Clips, of which there are thousands, are known by size and time of change (`stamp`).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from hba_ray.errors import DataError
from hba_ray.progress import progress
from hba_ray.store.folders import DO_AGAIN, append_line, drafted, read_lines

if TYPE_CHECKING:
    import pyarrow as pa

Value = TypeVar("Value")
Key = tuple[int, ...]
"""Device, inode, size, and the times in nanoseconds at which content and inode changed. No path: files are moved and linked."""

MEMORY = "digests.jsonl"
"""File in the storage folder that remembers digests: a line for each file that was read."""
DIGEST_LETTERS = 32
RECENT_SECONDS = 2.0
"""A file that changed so recently may change again within one tick of the file system's clock, and nothing would show it."""
READERS, CHUNK_BYTES = 4, 1 << 20
MANY_BYTES = 1 << 30
"""From here on a bar is shown: reading takes seconds."""
GONE = "gone"
STAMP_READERS = 16


def from_json(kind: TypeAdapter[Value], text: str | bytes, *, where: str, what: str, way_out: str) -> Value:
    """A value read from JSON text.

    Args:
        where: names the file.
        what: says what is wrong where the text is no such value ("not scores").

    Raises:
        DataError: the text is not of this kind; names its first defect.
    """
    try:
        return kind.validate_json(text)
    except ValidationError as cause:
        error = cause.errors()[0]
        defect = ": ".join(part for part in (".".join(map(str, error["loc"])), error["msg"]) if part)
        raise DataError(where, f"{what}: {defect}", way_out, reason=what) from cause


def read_parquet(file: Path, columns: Sequence[str] | None = None, *, schema: pa.Schema | None = None) -> pa.Table:
    """A table that a step has written; all columns by default.

    Args:
        schema: of the whole table, where it is known.

    Raises:
        DataError: it is damaged, or gone, or has another schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as cause:
        raise DataError(str(file), f"cannot be read: {str(cause).splitlines()[0]}", DO_AGAIN, reason="corrupt file") from cause
    if schema is not None and not table.schema.equals(schema):
        raise DataError(
            str(file), f"cannot be read: its columns are {table.schema.names}, not {schema.names}", DO_AGAIN, reason="corrupt file"
        )
    return table


def write_parquet(table: pa.Table, file: Path) -> None:
    """Writes a table whole or, where that fails, not at all."""
    import pyarrow.parquet as pq

    with drafted(file) as draft:
        pq.write_table(table, draft)


def file_digest(path: Path, *, memory: Path | None = None) -> str:
    """The digest of one file; see `file_digests`."""
    return file_digests([path], memory=memory)[0]


def folder_digests(folder: Path, *, memory: Path | None = None) -> list[list[str]]:
    """Name and digest of each file that lies in a folder, by name; folders in it are left out."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return [[path.name, digest] for path, digest in zip(files, file_digests(files, memory=memory), strict=True)]


def file_digests(
    paths: Sequence[Path],
    *,
    memory: Path | None = None,
    recent_seconds: float = RECENT_SECONDS,
    opener: Callable[[Path], BinaryIO] = lambda path: path.open("rb"),
) -> list[str]:
    """The first half of the SHA-256 of all bytes of each file, in their order.

    Args:
        memory: folder whose `digests.jsonl` remembers digests, usually the storage; None reads every file again.
        recent_seconds: how long a file must have been left alone for its digest to be remembered.
        opener: opens a file for reading.
    """
    keys = [_key(path) for path in paths]
    known = _remembered(memory)
    unknown = {key: path for path, key in zip(paths, keys, strict=True) if key not in known}
    megabytes = sum(key[2] for key in unknown) >> 20
    with (
        progress("digest, MiB", total=megabytes) if megabytes << 20 >= MANY_BYTES else nullcontext() as bar,
        ThreadPoolExecutor(READERS) as pool,
    ):
        advance = (lambda read: None) if bar is None else (lambda read: bar.advance(read / 2**20))
        made = dict(zip(unknown, pool.map(lambda path: _digest(path, opener, advance), unknown.values()), strict=True))
    for key, path in unknown.items():
        is_settled = key[-1] < time.time_ns() - recent_seconds * 1e9 and _key(path) == key
        if memory is not None and memory.is_dir() and is_settled:
            append_line(memory / MEMORY, {"file": key, "sha256": made[key]}, durable=False)
    return [known.get(key) or made[key] for key in keys]


def _digest(path: Path, opener: Callable[[Path], BinaryIO], advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with opener(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()[:DIGEST_LETTERS]


def _key(path: Path) -> Key:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remembered(memory: Path | None) -> dict[Key, str]:
    """What the memory holds; a line that is damaged says nothing, and its file is read again."""
    known: dict[Key, str] = {}
    for line in [] if memory is None else read_lines(memory / MEMORY):
        key, digest = line.get("file"), line.get("sha256")
        if isinstance(key, list) and all(isinstance(part, int) for part in key) and isinstance(digest, str):
            known[tuple(key)] = digest
    return known


def stamp(path: str | Path) -> str:
    """Size and time of change of a file; "gone" where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return GONE
    return f"{status.st_size} {status.st_mtime_ns}"


def stamps(paths: Sequence[str | Path]) -> list[str]:
    """The stamps of many files, in their order; several threads ask for them, since a shared disk answers slowly but many at once."""
    share = max(1, -(-len(paths) // STAMP_READERS))
    with ThreadPoolExecutor(STAMP_READERS) as pool:
        parts = pool.map(lambda start: [stamp(path) for path in paths[start : start + share]], range(0, len(paths), share))
        return [one for part in parts for one in part]
