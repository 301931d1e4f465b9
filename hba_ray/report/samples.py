"""Rows to read: what was asked, what is true, what every arm said, and whether it is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hba_ray.data.answers import plain_text
from hba_ray.data.tasks import DATASETS
from hba_ray.evaluation.comparisons import ArmRows
from hba_ray.evaluation.scores import Record
from hba_ray.report.clips import Clip, Key

PER_DATASET, MOST = 60, 400
"""Rows of a dataset, and of a page."""


@dataclass(frozen=True)
class Answer:
    """What one arm said.

    Attributes:
        text: None where nothing could be read.
        is_right: by the judge where it has graded the answer, else by the text.
        probability: of the class, by models with heads.
    """

    arm: str
    text: str | None
    is_right: bool
    probability: float | None = None


@dataclass(frozen=True)
class Sample:
    """One row.

    Attributes:
        answers: of the arms that have predicted the row.
        clips: None where the page has not looked at them.
    """

    dataset: str
    sample_id: str
    question: str
    true: str
    answers: tuple[Answer, ...]
    clips: tuple[Clip, ...] | None = None


@dataclass(frozen=True)
class Samples:
    """Some of the rows.

    Attributes:
        total: rows that there are.
        notes: sentences on how they were chosen.
    """

    arms: tuple[str, ...]
    rows: tuple[Sample, ...]
    total: int
    notes: tuple[str, ...] = ()


def samples(arms: Sequence[ArmRows], clips: Mapping[Key, tuple[Clip, ...]], notes: Sequence[str] = ()) -> Samples:
    """Chooses rows: of each dataset first those whose clips are known, evenly from the rest, and as many on which arms do not agree.

    Args:
        clips: of rows that were looked at.
        notes: on the clips.
    """
    right = {arm.name: _right(arm) for arm in arms}
    by_dataset: dict[str, list[Key]] = {}
    for key in sorted({key for arm in right.values() for key in arm}):
        by_dataset.setdefault(key[0], []).append(key)
    quota = min(PER_DATASET, MOST // max(1, len(by_dataset)))
    ordered = [name for name in DATASETS if name in by_dataset]
    chosen = [key for name in ordered for key in _choose(by_dataset[name], quota, right, clips)]
    records = {arm.name: _records(arm.predictions, chosen) for arm in arms}
    rows = tuple(_sample(key, arms, records, right, clips.get(key)) for key in chosen)
    total = sum(map(len, by_dataset.values()))
    said = (f"{len(rows)} of {total} rows: of each dataset up to {quota}, half of them because an arm is wrong there.",)
    return Samples(tuple(arm.name for arm in arms), rows, total, (*(said if len(rows) < total else ()), *notes))


def _choose(keys: list[Key], quota: int, right: Mapping[str, Mapping[Key, bool]], clips: Mapping[Key, object]) -> list[Key]:
    """At most `quota` of a dataset's keys, in their order."""
    if len(keys) <= quota:
        return keys
    known = [key for key in keys if key in clips]
    half = quota - quota // 2
    plain = _evenly(known if len(known) >= half else keys, half)
    wrong = [key for key in keys if key not in set(plain) and not all(arm.get(key, True) for arm in right.values())]
    rest = _evenly(wrong, quota - half)
    filled = _evenly([key for key in keys if key not in {*plain, *rest}], quota - half - len(rest))
    return sorted({*plain, *rest, *filled})


def _evenly(keys: Sequence[Key], count: int) -> list[Key]:
    """
    >>> _evenly([("a", "1"), ("a", "2"), ("a", "3"), ("a", "4")], 2)
    [('a', '1'), ('a', '3')]
    """
    return list(keys) if len(keys) <= count else [keys[place * len(keys) // count] for place in range(count)]


def _right(arm: ArmRows) -> dict[Key, bool]:
    table = arm.predictions
    names = ("dataset", "sample_id", "true", "predicted", "answer")
    columns = [table.column(name).to_pylist() if name in table.column_names else [None] * len(table) for name in names]
    found = {}
    for dataset, sample, true, predicted, answer in zip(*columns, strict=True):
        is_open = DATASETS[dataset].task.is_open
        said = answer if is_open else predicted
        if is_open and arm.verdicts is not None:
            found[dataset, sample] = arm.verdicts.get((dataset, sample)) is True
        else:
            found[dataset, sample] = said is not None and plain_text(said) == plain_text(true)
    return found


def _records(table: pa.Table, keys: Iterable[Key]) -> dict[Key, Record]:
    """The rows of a table that are wanted."""
    places = {
        key: place for place, key in enumerate(zip(*(table.column(name).to_pylist() for name in ("dataset", "sample_id")), strict=True))
    }
    wanted = [key for key in keys if key in places]
    return dict(zip(wanted, table.take(pa.array([places[key] for key in wanted], pa.int64())).to_pylist(), strict=True))


def _sample(
    key: Key,
    arms: Sequence[ArmRows],
    records: Mapping[str, Mapping[Key, Record]],
    right: Mapping[str, Mapping[Key, bool]],
    clips: tuple[Clip, ...] | None,
) -> Sample:
    own = {arm.name: records[arm.name][key] for arm in arms if key in records[arm.name]}
    first: dict[str, Any] = next(iter(own.values()))
    is_open = DATASETS[key[0]].task.is_open
    answers = tuple(
        Answer(name, record.get("answer") if is_open else record["predicted"], right[name][key], record.get("probability"))
        for name, record in own.items()
    )
    question = next((record["question"] for record in own.values() if record.get("question")), "")
    return Sample(*key, question, first["true"], answers, clips)
