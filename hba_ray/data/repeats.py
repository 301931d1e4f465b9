"""Finds rows that are there twice: in one split, where they would count twice, and in two splits, where a test tests nothing.

Most rows are told apart by their text. Clips are read only of rows whose question and answer are those of another row.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hba_ray.data.rows import MEDIA_COLUMNS, Row
from hba_ray.errors import DataError

PAIRS = (("test", "train"), ("validation", "train"), ("test", "validation"))
"""Splits that should share no row."""
WITHOUT_REPEATS = ("test", "validation")
"""Splits in which no row should be there under two ids. Training may see a row twice."""
NAMED = 10
"""Rows of a leak that a sentence names."""
Clip = tuple[str, int, str | Path]
"""Modality, size in bytes, and the SHA-256 of the bytes or, until that is needed, the file."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a row of an index while its clips are unread.

    Attributes:
        text: digest of its question and answer.
        sample_id: None where it follows from the clips.
        has_clips: of the modalities that a model is shown.
    """

    split: str
    dataset: str
    text: bytes
    sample_id: str | None
    has_clips: bool


@dataclass(frozen=True)
class Leak:
    """Rows of one split that are in another one, too, or once more in the same.

    Attributes:
        other: the other split, or the same.
        kind: `row`: question, answer and clips are the same; `sample_id`: only the id is.
        rows: of `split`.
        samples: their ids.
    """

    dataset: str
    split: str
    other: str
    kind: Literal["row", "sample_id"]
    rows: int
    samples: tuple[str, ...]

    @property
    def is_across(self) -> bool:
        """Whether the rows are in two splits, not twice in one."""
        return self.split != self.other

    def __str__(self) -> str:
        named = ", ".join(f"'{sample}'" for sample in self.samples[:NAMED]) + (", …" if self.rows > NAMED else "")
        if not self.is_across:
            return f"{self.dataset}: rows of {self.split} that are there once more under another id: {self.rows} ({named})"
        same = f"in {self.other}, too" if self.kind == "row" else f"in {self.other} by sample_id, with other content"
        return f"{self.dataset}: rows of {self.split} that are {same}: {self.rows} ({named})"


@dataclass(frozen=True)
class Repeats:
    """What `find_repeats` found.

    Attributes:
        duplicates: line of the index -> the line before it, in the same split, that has its id.
    """

    duplicates: Mapping[int, int]
    leaks: tuple[Leak, ...]


def text_digest(row: Row) -> bytes:
    """A short name of a row's question and answer."""
    return hashlib.sha256(f"{row.problem}\0{row.answer}".encode()).digest()[:16]


def find_repeats(kept: Sequence[Kept], read: Callable[[Sequence[int]], Iterator[Row | DataError]]) -> Repeats:
    """The rows of an index that are there twice.

    Args:
        kept: one for each line of the index.
        read: gives the rows at these lines, in ascending order, with their clips.
    """
    ids = {line: row.sample_id for line, row in enumerate(kept) if row.sample_id is not None}
    shared, unread = _same_text(kept)
    clips: dict[int, tuple[Clip, ...]] = {line: () for line in shared if not kept[line].has_clips}
    for line, row in zip(unread, read(unread), strict=True):
        if isinstance(row, Row):
            ids.setdefault(line, row.sample_id)
            if line in shared and (found := _clips(row)) is not None:
                clips[line] = found
    duplicates: dict[int, int] = {}
    first: dict[tuple[str, str, str], int] = {}
    for line, sample in sorted(ids.items()):
        before = first.setdefault((kept[line].split, kept[line].dataset, sample), line)
        if before != line and kept[line].split != "train":
            duplicates[line] = before
    ids = {line: sample for line, sample in ids.items() if line not in duplicates}
    clips = {line: found for line, found in clips.items() if line not in duplicates}
    return Repeats(duplicates, tuple(_leaks(kept, ids, _contents(kept, clips))))


def _same_text(kept: Sequence[Kept]) -> tuple[set[int], list[int]]:
    """The lines whose text is in another split too, and the lines that have to be read, in ascending order."""
    by_text: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    for line, row in enumerate(kept):
        by_text[row.dataset, row.text].append(line)
    shared: set[int] = set()
    unread: set[int] = set()
    for lines in by_text.values():
        if _may_repeat(kept, lines):
            shared.update(lines)
        unnamed = [line for line in lines if kept[line].sample_id is None and kept[line].split != "train"]
        unread.update(unnamed if len(unnamed) > 1 else ())
    unread.update(line for line in shared if kept[line].has_clips)
    return shared, sorted(unread)


def _may_repeat(kept: Sequence[Kept], lines: Sequence[int]) -> bool:
    """Whether rows that look the same so far matter: they are in two splits, or twice in one that is no training split."""
    return len(lines) > 1 and {kept[line].split for line in lines} != {"train"}


def _clips(row: Row) -> tuple[Clip, ...] | None:
    """A row's clips; None where a file of one is gone."""
    found: list[Clip] = []
    for modality in MEDIA_COLUMNS:
        for clip in row.files.get(modality, ()):
            if isinstance(clip, bytes):
                found.append((modality, len(clip), hashlib.sha256(clip).hexdigest()))
            else:
                try:
                    found.append((modality, clip.stat().st_size, clip))
                except OSError:
                    return None
    return tuple(found)


def _contents(kept: Sequence[Kept], clips: Mapping[int, tuple[Clip, ...]]) -> dict[int, tuple[object, ...]]:
    """Line -> what two rows with the same content have in common. Files are read only where some have the same sizes."""
    by_size: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for line, found in clips.items():
        by_size[kept[line].dataset, kept[line].text, tuple(clip[:2] for clip in found)].append(line)
    known: dict[Path, str] = {}
    contents: dict[int, tuple[object, ...]] = {}
    for key, lines in by_size.items():
        if _may_repeat(kept, lines):
            contents |= {line: (*key, *(_digest(clip, known) for _, _, clip in clips[line])) for line in lines}
    return contents


def _digest(clip: str | Path, known: dict[Path, str]) -> str:
    """The SHA-256 of a clip; a file that cannot be read is like no other."""
    if isinstance(clip, str):
        return clip
    if clip not in known:
        try:
            with clip.open("rb") as file:
                known[clip] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            known[clip] = str(clip)
    return known[clip]


def _leaks(kept: Sequence[Kept], ids: Mapping[int, str], contents: Mapping[int, object]) -> Iterator[Leak]:
    """What each pair of splits shares, then what is in one split twice. A row that is the same is not told of again for its id."""
    names = {line: (kept[line].dataset, sample) for line, sample in ids.items()}
    kinds: tuple[tuple[Literal["row", "sample_id"], Mapping[int, object]], ...] = (("row", contents), ("sample_id", names))
    for split, other in (*PAIRS, *((split, split) for split in WITHOUT_REPEATS)):
        told: set[int] = set()
        for kind, of_line in kinds:
            first = {value: line for line, value in sorted(of_line.items(), reverse=True) if kept[line].split == other}
            by_dataset: dict[str, list[int]] = defaultdict(list)
            for line, value in sorted(of_line.items()):
                if kept[line].split == split and first.get(value, line) != line and line not in told:
                    by_dataset[kept[line].dataset].append(line)
                    told.add(line)
            for dataset, lines in sorted(by_dataset.items()):
                yield Leak(dataset, split, other, kind, len(lines), tuple(ids.get(line, "?") for line in lines))
