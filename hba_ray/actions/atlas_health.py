"""What is wrong with the rows of an atlas, found one by one: leaks between splits, repeats, labels, files that are named and missing.

`row_findings` reads texts and names alone. `content_findings` compares what clips hold once they are decoded (`check_clips`), and so
finds one that is there twice under two names or in two formats. No finding holds a row's text.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from hba_ray.actions.check_atlas import Clips, Content
from hba_ray.data.atlas import AtlasIndex
from hba_ray.data.repeats import PAIRS, WITHOUT_REPEATS, Leak, text_digest
from hba_ray.data.rows import Row, contradicts, parse_row
from hba_ray.data.shards import records
from hba_ray.data.text import quoted, visible
from hba_ray.errors import DataError
from hba_ray.escaping import csv_cell
from hba_ray.report.sheets import Sheet

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""`error`: results would be wrong, or a run would stop; `warning`: look at it before you trust results; `note`: good to know."""
SHARE_OFF = 0.02
"""A label whose share of its dataset is further from the published one is told."""
ROW_TWICE = "row twice"

GROUPS: dict[str, tuple[str, re.Pattern[str], Severity]] = {
    "cremad": ("actor", re.compile(r"(?:^|[/-])(\d{4})_[A-Z]{3}_[A-Z]{3}_"), "warning"),
    "iemocap": ("session", re.compile(r"(Ses\d\d)[FM]_"), "warning"),
    "mosei": ("video", re.compile(r"(?:^mosei-|(?:^|/)Raw/)(.+)[-/][^-/]+$"), "warning"),
    "chsimsv2": ("video", re.compile(r"(?:^chsimsv2-|(?:^|/)Raw/)(.+)[-/][^-/]+$"), "warning"),
    "tess": ("speaker", re.compile(r"(?:^|[/-])(OA|YA)F?_"), "note"),  # two speakers cannot make three splits
}
"""Corpus -> what its names of clips tell of the speaker or the video, and how bad it is that two splits share one."""

LABELS: dict[str, dict[str, int]] = {
    "tess": dict.fromkeys(("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"), 400),
    "cremad": {**dict.fromkeys(("anger", "disgust", "fear", "happy", "sad"), 1271), "neutral": 1087},
    "mmsd": {"not sarcasm": 345, "sarcasm": 345},
    "mmpsy_depression": {"no depression": 1017, "depression": 258},
    "mmpsy_anxiety": {"no anxiety": 1139, "anxiety": 136},
}
"""Rows of each label over all splits, of the datasets whose public files fix them; counted in these files."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: what it is, in a few words; the same for all findings alike.
        split: of the row; both where two splits share it.
        row: its sample_id or place; empty where the finding is about a dataset.
    """

    severity: Severity
    kind: str
    dataset: str
    split: str
    row: str
    what: str


@dataclass(frozen=True)
class _Seen:
    """What a row shows without its clips being read; None where that is not known."""

    line: int
    split: str
    row: Row
    sample_id: str | None
    clip_id: str | None
    content: Hashable | None
    stated: Any
    is_contradicted: bool
    missing: tuple[str, ...]


def row_findings(index: AtlasIndex) -> list[Finding]:
    """What texts and names of files tell of the rows of an index, of those that were left out, and of the labels."""
    seen = {one.line: one for one in _seen(index)}
    found = [Finding("error", drop.reason, drop.dataset, drop.split, drop.row, "is left out, or stops a run") for drop in index.drops]
    found += [_of_leak(leak, sample) for leak in index.leaks if leak.kind == "row" for sample in leak.samples]
    found += _crossing(seen, "sample_id in two splits", {line: _of(one, one.sample_id) for line, one in seen.items()})
    found += _crossing(seen, "clip in two splits", {line: _of_corpus(one, one.clip_id) for line, one in seen.items()})
    for source, (what, pattern, severity) in GROUPS.items():
        groups = {line: _of_corpus(one, _group(one, pattern)) for line, one in seen.items() if one.row.dataset.source == source}
        found += _crossing(seen, f"{what} in two splits", groups, severity)
    found += _repeated(seen, "sample_id twice", {line: _of(one, one.sample_id) for line, one in seen.items()})
    found += _repeated(seen, ROW_TWICE, {line: one.content for line, one in seen.items() if one.split not in WITHOUT_REPEATS})
    for one in seen.values():
        place = (one.row.dataset.id, one.split, one.row.sample_id)
        quote = partial(quoted, is_sensitive=one.row.dataset.sensitive)
        if one.is_contradicted:
            found.append(Finding("warning", "modality_signature", *place, f"{quote(str(one.stated))} contradicts the clips, which decide"))
        found += [Finding("warning", "missing text", *place, f"texts names {quote(name)}, which is not there") for name in one.missing]
    return sorted([*found, *label_findings(index)], key=_place)


def content_findings(contents: Sequence[Content]) -> list[Finding]:
    """Clips that are the same once decoded, in two splits.

    Args:
        contents: of all clips, in the order of the rows.
    """
    alike: dict[str, list[Content]] = defaultdict(list)
    for one in contents:
        alike[one.name].append(one)
    found: set[Finding] = set()
    for same in alike.values():
        for split, other in PAIRS:
            there = next((one for one in same if one.split == other), None)
            found |= {
                Finding(
                    "error",
                    "content in two splits",
                    one.dataset,
                    f"{split}, {other}",
                    one.sample_id,
                    _same_as(there.dataset, there.sample_id),
                )
                for one in same
                if there is not None and one.split == split
            }
    return sorted(found, key=_place)


def label_findings(index: AtlasIndex) -> list[Finding]:
    """Labels whose share of a dataset is not that of its public files."""
    found = []
    for dataset, published in LABELS.items():
        counts: Counter[str] = Counter()
        for split in ("train", "validation", "test"):
            counts.update(index.label_counts(split).get(dataset, {}))
        for label, rows in published.items() if counts else ():
            share, expected = counts[label] / counts.total(), rows / sum(published.values())
            if abs(share - expected) > SHARE_OFF:
                what = f"'{label}' is {share:.1%} of the rows, and {expected:.1%} of the public files"
                found.append(Finding("warning", "labels", dataset, "all", "", what))
    return found


def clip_findings(clips: Sequence[Clips]) -> list[Finding]:
    """What `check_clips` has said of each row, as findings: notes where only the end of a sound is not read, warnings else."""
    found = []
    for one in clips:
        for place in one.places:
            row, _, what = place.removeprefix(f"{one.dataset} ").partition(": ")
            severity = "note" if what.endswith("are read") else "warning"
            found.append(Finding(severity, f"{one.modality} clip", one.dataset, "", row, what))
    return found


def finding_sheet(findings: Sequence[Finding]) -> Sheet:
    """How many findings there are of each kind, the worst first."""
    counts = Counter((SEVERITIES.index(one.severity), one.kind, one.dataset, one.split) for one in findings)
    first = {(SEVERITIES.index(one.severity), one.kind, one.dataset, one.split): one for one in reversed(findings)}
    rows = [
        (SEVERITIES[key[0]], *key[1:], str(count), f"{first[key].row}: {first[key].what}" if first[key].row else first[key].what)
        for key, count in sorted(counts.items())
    ]
    return Sheet("Findings", ("severity", "finding", "dataset", "split", "rows", "the first one"), tuple(rows), 6)


def write_findings(findings: Sequence[Finding], file: Path) -> None:
    """Writes all findings as CSV, one a line."""
    names = [one.name for one in fields(Finding)]
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows([csv_cell(getattr(one, name)) for name in names] for one in findings)


def _place(finding: Finding) -> tuple[object, ...]:
    return SEVERITIES.index(finding.severity), finding.kind, finding.dataset, finding.split, finding.row


def _of_leak(leak: Leak, sample: str) -> Finding:
    """A row of a leak, which the index has compared by its clips too; in one split it is there under two ids."""
    what = "question, answer and clips are the same"
    if leak.is_across:
        return Finding("error", "row in two splits", leak.dataset, f"{leak.split}, {leak.other}", sample, what)
    return Finding("warning", ROW_TWICE, leak.dataset, leak.split, sample, f"{what} as of an earlier row")


def _seen(index: AtlasIndex) -> Iterator[_Seen]:
    """The rows of an index, read without clips."""
    columns = (index.table.column(name).to_pylist() for name in ("shard", "group", "position"))
    lines = {place: line for line, place in enumerate(zip(*columns, strict=True))}
    for number, shard in enumerate(index.shards):
        root = Path(shard.root)
        for record in records(shard, also=("texts",)):
            line = lines.get((number, record.address, record.position))
            if line is None or not isinstance(record.columns, dict):
                continue
            own_root = None if shard.is_parquet else root
            try:
                row = parse_row(record.columns, where="row", root=own_root, split_surprise=index.split_surprise, light=shard.is_parquet)
            except DataError:  # it was in order when the index was made; reading it tells more
                continue
            present = frozenset(row.media) if record.present is None else record.present
            files = tuple(clip for clips in row.media.values() for clip in clips)
            stated = record.columns.get("modality_signature")
            knows_clips = bool(files) or not present
            yield _Seen(
                line=line,
                split=shard.split,
                row=row,
                sample_id=record.columns.get("sample_id") or (row.sample_id if knows_clips else None),
                clip_id=record.columns.get("clip_id") or (row.clip_id if files else None),
                content=(row.dataset.id, text_digest(row), files) if knows_clips else None,
                stated=stated,
                is_contradicted=contradicts(stated, present),
                missing=tuple(_missing(record.columns.get("texts"), root)),
            )


def _missing(texts: Any, root: Path) -> Iterator[str]:
    """Values of `texts` that are names of files which are not there."""
    for text in texts if isinstance(texts, list) else ():
        is_name = isinstance(text, str) and len(text) < 200 and re.fullmatch(r"[\w./-]+\.(?:txt|json|vtt|srt|csv|tsv)", text)
        if is_name and not (root / text).is_file():
            yield text


def _of(seen: _Seen, value: Hashable | None) -> Hashable | None:
    return None if value is None else (seen.row.dataset.id, value)


def _of_corpus(seen: _Seen, value: Hashable | None) -> Hashable | None:
    """Datasets of one corpus share their clips."""
    return None if value is None else (seen.row.dataset.source, value)


def _group(seen: _Seen, pattern: re.Pattern[str]) -> str | None:
    named = pattern.search(PurePosixPath(seen.clip_id).as_posix()) if seen.clip_id else None
    return named[1] if named else None


def _crossing(
    seen: Mapping[int, _Seen], kind: str, values: Mapping[int, Hashable | None], severity: Severity = "error"
) -> Iterator[Finding]:
    """Rows whose value is that of a row in another split."""
    first: dict[tuple[str, Hashable], Row] = {}
    for line, value in values.items():
        first.setdefault((seen[line].split, value), seen[line].row)
    for line, value in values.items():
        one = seen[line]
        for split, other in PAIRS:
            if value is not None and one.split == split and (other, value) in first:
                there = first[other, value]
                what = _same_as(there.dataset.id, there.sample_id)
                yield Finding(severity, kind, one.row.dataset.id, f"{split}, {other}", one.row.sample_id, what)


def _repeated(seen: Mapping[int, _Seen], kind: str, values: Mapping[int, Hashable | None]) -> Iterator[Finding]:
    """Rows whose value is that of an earlier row of their split. In test and validation such rows were left out when indexing."""
    first: dict[tuple[str, Hashable], Row] = {}
    for line, value in values.items():
        one = seen[line]
        before = first.setdefault((one.split, value), one.row)
        if value is not None and before is not one.row:
            yield Finding("warning", kind, one.row.dataset.id, one.split, one.row.sample_id, _same_as(before.dataset.id, before.sample_id))


def _same_as(dataset: str, sample_id: str) -> str:
    return f"the same as of {dataset} {visible(sample_id)}"
