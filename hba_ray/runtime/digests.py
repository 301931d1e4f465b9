"""What is known of a file without reading all of it: enough to notice a change, cheap enough for hundreds of gigabytes.

Tables of text are read whole, since an edit may be anywhere in them; of others the size and both ends
count; of clips, of which there are thousands, the size and the time of change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

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
