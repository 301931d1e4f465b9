"""Everything that converters share: strict reading of the public files, bad rows, splits, and the wording of prompts.

Files: a defect of a file (missing, not UTF-8, no such column, cut off inside a quote) always stops the
conversion; a defect of a row stops it or leaves the row out, as `atlas.on_bad_row` says.

Splits: a corpus that publishes none is split by whole groups (actor, scene, clip). Groups are ordered by a
hash of the seed and their name, so a split depends neither on the order of the rows nor on the version
of a random generator.

Prompts: marks for the clips, the transcript, what is shown above, a question, and the label set (paper
Tables 3 and 22).
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hba_ray.data.atlas import Drop
from hba_ray.data.rows import MEDIA_COLUMNS, TAG, Row
from hba_ray.data.shards import check_is_file
from hba_ray.data.tasks import SPLITS, Dataset
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec

OnBadRow = Literal["fail", "drop"]


@dataclass(frozen=True)
class Difference:
    """One reason why a split has more rows (positive) or fewer (negative) than published."""

    rows: int
    reason: str


@dataclass(frozen=True)
class ConversionRequest:
    """What is asked of a converter.

    Attributes:
        folder: of the public files.
        datasets: ids of those of its datasets that are wanted.
        seed: of the split, where the corpus publishes none.
        spec: the other settings of `atlas`.
    """

    folder: Path
    datasets: list[str]
    seed: int
    spec: AtlasSpec


@dataclass(frozen=True)
class Converted:
    """A corpus, read from its public files.

    Attributes:
        rows: split -> rows.
        drops: rows left out; `split` is empty where a row was left out before the split was made.
        differences: split -> the reasons that the converter knows for a count other than the published one.
    """

    rows: dict[str, list[Row]]
    drops: list[Drop] = field(default_factory=list)
    differences: dict[str, list[Difference]] = field(default_factory=dict)


class Sieve:
    """Raises the error of a bad row, or leaves the row out and notes it in `drops`."""

    def __init__(self, source: str, on_bad_row: OnBadRow):
        self.source, self.on_bad_row = source, on_bad_row
        self.drops: list[Drop] = []

    @contextmanager
    def row(self, split: str = "") -> Iterator[None]:
        """Runs a block that makes one row. A bad row ends the block early, so only the block's last line may keep anything of it."""
        try:
            yield
        except DataError as bad:
            if self.on_bad_row == "fail":
                raise bad.of_a_row() from None
            self.leave_out(bad.where, bad.reason, split)

    def leave_out(self, row: str, reason: str, split: str = "") -> None:
        self.drops.append(Drop(split, self.source, row, reason))


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        DataError: it is not there, no regular file, or not UTF-8; names the line.
    """
    if path.exists():
        check_is_file(path)
    try:
        raw = path.read_bytes()
    except OSError as cause:
        way_out = "atlas.root is the folder of the dataset's public files"
        raise DataError(str(path), f"cannot be read: {cause.strerror or cause}", way_out, reason="missing file") from None
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as cause:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            way_out = f"iconv -f UTF-16 -t UTF-8 {path.name} > new && mv new {path.name}"
            raise DataError(str(path), "is written in UTF-16, not in UTF-8", way_out, reason="not UTF-8") from None
        line = raw.count(b"\n", 0, cause.start) + 1
        what = f"byte 0x{raw[cause.start]:02x} is not UTF-8"
        raise DataError(f"{path}, line {line}", what, "fetch the file again, or re-encode it", reason="not UTF-8") from None


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each row of a CSV file. `column` reads values from a record and checks them.

    A row that is longer or shorter than the header has an empty record, which `column` refuses.

    Raises:
        DataError: the file cannot be read, lacks one of `columns`, is no CSV (cut off inside a quote),
            or holds no rows.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{path}, line 1", f"column '{missing[0]}' is missing", "use the file as published", reason="missing column")
        record = None
        for record in reader:
            fits = None not in record and None not in record.values()
            yield f"{path}, line {reader.line_num}", record if fits else {}
        if record is None:
            raise DataError(str(path), "holds no rows", "a truncated file ends like this", reason="no rows")
    except csv.Error as cause:
        where = f"{path}, line {reader.line_num}"
        raise DataError(where, f"is not CSV: {cause}", "a truncated file ends like this", reason="not CSV") from None


def column(record: Mapping[Any, Any], name: str, where: str) -> str:
    """A value of a record as text.

    Raises:
        DataError: the value is missing, no text, empty, or no Unicode.
    """
    value = record.get(name)
    if value is None:
        what = f"'{name}' is missing; the row may be cut off"
        raise DataError(where, what, "use the file as published", reason="missing value")
    if not isinstance(value, str):
        raise DataError(where, f"'{name}' is {type(value).__name__}, not text", reason="wrong type")
    if not value.strip():
        raise DataError(where, f"'{name}' is empty", reason="empty text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(where, f"'{name}' holds half a character (a lone surrogate)", reason="not UTF-8")
    return value


def labelled_row(dataset: Dataset, *, sample_id: str, clip_id: str, problem: str, label: str, media: dict[str, tuple[Path, ...]]) -> Row:
    """A row of a task with classes, whose answer is its label."""
    return Row(sample_id=sample_id, clip_id=clip_id, dataset=dataset, problem=problem, answer=label, label=label, media=media)


def first_folder(root: Path, candidates: Sequence[str]) -> Path | None:
    """The first of the candidate folders under `root` that is there."""
    return next((root / name for name in candidates if (root / name).is_dir()), None)


def video_and_audio(clip: Path, where: str) -> dict[str, tuple[Path, ...]]:
    """The media of a row whose video holds its sound."""
    path = clip_file(clip, where)
    return {"video": (path,), "audio": (path,)}


def clip_file(path: Path, where: str) -> Path:
    """The absolute path of a clip that is there.

    Raises:
        DataError: the file is not there, or no regular file.
    """
    if not path.is_file():
        what, reason = ("is no regular file", "not a file") if path.exists() else ("is not there", "missing file")
        raise DataError(where, f"{path} {what}", "restore the clip", reason=reason)
    return path.absolute()


def split_by_group(groups: Sequence[str], counts: tuple[int, int, int], seed: int) -> list[str]:
    """The split of each row; rows of one group are in one split.

    Test comes as near to its count as whole groups allow. Validation is then filled so that it and
    train, which takes the rest, together miss their counts by as little as possible. Where every group
    is a single row all counts are met exactly.

    Args:
        groups: the group of each row.
        counts: rows wanted in train, validation and test; they add up to the number of rows.

    Raises:
        DataError: the counts are negative or do not add up.
    """
    if min(counts) < 0 or sum(counts) != len(groups):
        raise DataError("splits", f"counts {counts} do not add up to {len(groups)} rows", "see share_out", reason="wrong counts")
    sizes = Counter(groups)
    free = sorted(sizes, key=lambda group: _place(group, seed))
    split_of = dict.fromkeys(sizes, "train")
    excess = 0
    for split, target in (("test", counts[2]), ("validation", counts[1])):
        chosen = {free[index] for index in _nearest_subset([sizes[group] for group in free], target, excess)}
        split_of.update(dict.fromkeys(chosen, split))
        free = [group for group in free if group not in chosen]
        excess = sum(sizes[group] for group in chosen) - target
    return [split_of[group] for group in groups]


def split_rows(rows: Sequence[Row], groups: Sequence[str], counts: tuple[int, int, int], seed: int, *, where: str) -> dict[str, list[Row]]:
    """Split -> its rows, in their order, split by `split_by_group`.

    Args:
        groups: the group of each row.
        where: names the corpus in errors.

    Raises:
        DataError: as `split_by_group`.
    """
    split_of = split_by_group(groups, counts, seed)
    check_disjoint(groups, split_of, where=where)
    return {split: [row for row, its in zip(rows, split_of, strict=True) if its == split] for split in SPLITS}


def share_out(dataset: Dataset, total: int) -> tuple[int, int, int]:
    """The dataset's published counts (Table 7), scaled by largest remainder so that they add up to `total`.

    Raises:
        DataError: the dataset has no published counts.
    """
    if dataset.counts is None:
        raise DataError(dataset.id, "has no published counts to split by", reason="wrong counts")
    exact = [count * total / sum(dataset.counts) for count in dataset.counts]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(3), key=lambda index: shares[index] - exact[index])
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares[0], shares[1], shares[2]


def check_disjoint(groups: Iterable[str], splits: Iterable[str], *, where: str) -> None:
    """Checks that no group lies in two splits.

    Raises:
        DataError: one does; names it and its splits.
    """
    found: dict[str, set[str]] = {}
    for group, split in zip(groups, splits, strict=True):
        found.setdefault(group, set()).add(split)
    leaks = sorted(group for group, its_splits in found.items() if len(its_splits) > 1)
    if leaks:
        its_splits = ", ".join(split for split in SPLITS if split in found[leaks[0]])
        what = f"{len(leaks)} group(s) lie in more than one split; first: '{leaks[0]}' in {its_splits}"
        raise DataError(where, what, reason="leak between splits")


def _place(group: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{group}".encode()).digest()


def _nearest_subset(sizes: Sequence[int], target: int, excess: int) -> list[int]:
    """Indices of sizes whose sum is nearest to `target`; by how much train then misses its count is added to the distance.

    Every sum that can be reached is kept with the index that reached it first. The sum without that size was
    reached by earlier indices only, so walking back from a sum takes no index twice.

    Args:
        excess: rows that other splits hold beyond their counts, which train then lacks.
    """
    first: dict[int, int] = {0: -1}
    for index, size in enumerate(sizes):
        if target in first:
            break
        for total in [total + size for total in first if total + size <= 2 * (target + abs(excess))]:
            first.setdefault(total, index)
    total = min(first, key=lambda reached: (abs(reached - target) + abs(reached - target + excess), abs(reached - target), reached))
    chosen = []
    while total:
        chosen.append(first[total])
        total -= sizes[first[total]]
    return chosen


QUESTIONS: dict[str, str] = {
    "SEN": "Which sentiment does the speaker convey?",
    "EMO": "Which emotion does the speaker convey?",
    "PTSD": "Does the speaker appear to live with post-traumatic stress disorder?",
    "DEP": "Does the speaker appear to live with depression?",
    "ANX": "Does the speaker appear to live with anxiety?",
    "SAR": "Is the speaker being sarcastic?",
    "HUM": "Is the speaker being humorous?",
}
"""Task -> its question. Open tasks are left out, since each of their rows has a question of its own."""

_NOUNS = {"image": "an image", "video": "a video", "audio": "a sound recording"}


def question(
    dataset: Dataset,
    modalities: Sequence[str],
    transcript: str | None,
    context: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    where: str | None = None,
) -> str:
    """The prompt of a row with one clip per modality.

    Args:
        modalities: the clips that the row has, of image, video and audio; text is ignored here.
        transcript: what is said in the clip; None where there is no transcript.
        context: what was said before it, one turn a line.
        labels: the label set to offer; the dataset's own by default.
        where: names the row in errors; the dataset by default.

    Raises:
        DataError: an open task; nothing to show; an empty text; a text that holds a mark of a clip.
    """
    where = where or dataset.id
    if dataset.task.is_open:
        raise DataError(where, f"{dataset.task.name} has no question of its own", "each row of an open task brings one", reason="open task")
    texts = [text for text in (context, transcript) if text is not None]
    for text in texts:
        _check(text, where)
    clips = [name for name in MEDIA_COLUMNS if name in modalities]
    if not clips and transcript is None:
        raise DataError(where, "has neither a clip nor a transcript", reason="nothing to show")
    shown = [_NOUNS[name] for name in clips] + (["a transcript"] if texts else [])
    last = " Judge the last line only; the lines before it were said earlier." if context else ""
    asked = f"{QUESTIONS[dataset.task.id]} Reply with one of these labels: {', '.join(labels or dataset.labels)}."
    return "\n".join([*(f"<{name}>" for name in clips), *texts, f"Given above: {_listed(shown)}.{last} {asked}"])


def _check(text: str, where: str) -> None:
    if not text.strip():
        raise DataError(where, "the transcript is empty", reason="empty text")
    if mark := TAG.search(text):
        what = f"the transcript holds {mark.group()}, which stands for a clip"
        raise DataError(where, what, "take it out of the text", reason="mark in text")


def _listed(things: Sequence[str]) -> str:
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
