"""Looks through all files of a storage folder for words that belong in none of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow.parquet as pq


def files_with(words: str, folder: Path, *, but: Collection[str] = ("steps", "judge-cache")) -> list[str]:
    """Files below a folder that hold these words, in any case, as seen from it.

    Args:
        but: folders directly below it that are left out.
    """
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in but):
        content = str(pq.read_table(file).to_pylist()).encode() if file.suffix == ".parquet" else file.read_bytes()
        if words.encode() in content.lower():
            found.append(file.relative_to(folder).as_posix())
    return found
