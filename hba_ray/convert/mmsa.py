"""Tables of the MMSA distribution, which CMU-MOSEI and CH-SIMS v2 share: one utterance a row, with a sentiment and a split.

`label.csv` or `meta.csv` has the columns video_id, clip_id, text, label and mode, in an order that differs between corpora. Where
there is no table, a feature file (`unaligned_50.pkl`) gives the same. Its column `annotation` is not read: in older downloads of
CH-SIMS v2 it is a vote that contradicts the score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hba_ray.convert.base import Sieve
from hba_ray.convert.media import first_file
from hba_ray.convert.splits import split_named
from hba_ray.convert.tables import column, identifier, read_table
from hba_ray.convert.unpickling import read_pickle
from hba_ray.errors import DataError

_COLUMNS = ("video_id", "clip_id", "text", "label", "mode")


@dataclass(frozen=True)
class Utterance:
    """A row of the table.

    Attributes:
        clip: as it stands: "0013" is not "13".
        score: the sentiment, as decimal text.
    """

    where: str
    video: str
    clip: str
    text: str
    score: str
    split: str


def read_utterances(folder: Path, tables: Sequence[str], features: Sequence[str], sieve: Sieve) -> Iterator[Utterance]:
    """The utterances of the first of these files that is in the folder; bad rows go through the sieve.

    Args:
        tables: names of CSV files.
        features: names of pickles, read where there is no table.

    Raises:
        DataError: there is none, it cannot be read, no row of it has a label, or a row is bad.
    """
    path = first_file(folder, (*tables, *features))
    if path is None:
        what = f"holds none of {', '.join((*tables, *features))}"
        raise DataError(str(folder), what, "atlas.root is the folder of the dataset's public files", reason="missing file")
    found = list(read_table(path, _COLUMNS) if path.suffix == ".csv" else _from_features(path))
    if not any(str(record.get("label") or "").strip() for _, record in found):
        way_out = "it is the unsupervised part; give the supervised one"
        raise DataError(str(path), "has no labels at all", way_out, reason="no labels")
    seen: set[tuple[str, str]] = set()
    for where, record in found:
        utterance = None
        with sieve.row():
            utterance = _utterance(record, where, seen)
        if utterance is not None:
            yield utterance


def _utterance(record: Mapping[str, Any], where: str, seen: set[tuple[str, str]]) -> Utterance:
    video, clip = (identifier(record, name, where) for name in ("video_id", "clip_id"))
    if (video, clip) in seen:
        raise DataError(where, f"clip {clip} of {video} occurs twice", reason="duplicate row")
    score, text = column(record, "label", where).strip(), column(record, "text", where).strip()
    split = split_named(column(record, "mode", where), where)
    seen.add((video, clip))
    return Utterance(where, video, clip, text, score, split)


def _from_features(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a feature file in the columns of the table."""
    held = read_pickle(path)
    if not isinstance(held, dict):
        raise DataError(str(path), f"holds {type(held).__name__}, not a dict of splits", "use the file as published", reason="wrong type")
    for mode, columns in held.items():
        try:
            rows = list(zip(columns["id"], columns["raw_text"], columns["regression_labels"], strict=True))
        except (KeyError, TypeError, ValueError, IndexError):
            what = f"split '{mode}' lacks id, raw_text or regression_labels, or they are of different lengths"
            raise DataError(str(path), what, "use the file as published", reason="missing column") from None
        for number, (name, text, score) in enumerate(rows, 1):
            video, mark, clip = str(name).rpartition("$_$")
            record = {"video_id": video, "clip_id": clip, "text": str(text), "label": str(score), "mode": str(mode)}
            yield f"{path}, {mode} row {number}", record if mark else {}
