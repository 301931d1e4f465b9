"""Whether two arms differ: dataset by dataset, on the rows that both have predicted, corrected for having looked often.

Two arms row by row: aligned for paired tests, and the rows in which they differ for people to read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from hba_ray.data.tasks import DATASETS, Dataset, find_dataset
from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import plain_text
from hba_ray.evaluation.scores import Record, Verdicts, clips_of, dataset_seed, group_records, guesses
from hba_ray.evaluation.statistics import Interval, compare_arms, holm
from hba_ray.store.files import from_json


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PairScore:
    """Second arm minus first arm on one dataset.

    Attributes:
        rows: that both arms have predicted; `clips` of them are independent.
        difference: of the dataset's metric; None where it is missing, and then so is the rest.
        interval: the middle 95% of the difference under resampling of whole clips.
        p_value: of the paired permutation test, two-sided.
        p_adjusted: the same after Holm's correction over all pairs of a report.
        detectable: the smallest true difference that rows like these show with a power of 0.8.
    """

    first: str
    second: str
    dataset: str
    metric: str
    rows: int
    clips: int
    difference: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    detectable: float | None
    p_adjusted: float | None = None


_ADAPTER = TypeAdapter(tuple[PairScore, ...])


class ArmRows(NamedTuple):
    """What one arm said.

    Attributes:
        predictions: columns as in `predict.SCHEMA`.
        verdicts: of a judge; None where its open answers were not judged.
    """

    name: str
    predictions: pa.Table
    verdicts: Verdicts | None = None


def compare_tables(first: ArmRows, second: ArmRows) -> tuple[PairScore, ...]:
    """Compares two arms on every dataset that both have rows of, in the benchmark's order.

    Open answers are compared by verdict where both arms were judged, by exact match otherwise.

    Raises:
        DataError: as `scores.group_records`, or a row has another truth in the other arm.
    """
    groups = [group_records(arm.predictions, where=arm.name) for arm in (first, second)]
    shared = [dataset for name, dataset in DATASETS.items() if name in groups[0] and name in groups[1]]
    return tuple(_compare(dataset, first, second, groups[0][dataset.id], groups[1][dataset.id]) for dataset in shared)


def _compare(dataset: Dataset, first: ArmRows, second: ArmRows, ours: list[Record], others: list[Record]) -> PairScore:
    pairs = list(_paired(ours, others, f"{second.name} ({dataset.id})"))
    judged = first.verdicts is not None and second.verdicts is not None
    metric, left = guesses(dataset, [one for one, _ in pairs], first.verdicts if judged else None, first.name)
    _, right = guesses(dataset, [other for _, other in pairs], second.verdicts if judged else None, second.name)
    true, clips = [one["true"] for one, _ in pairs], clips_of([one for one, _ in pairs])
    found = compare_arms(metric, true, left, right, clips, seed=dataset_seed(dataset.id))
    value = found.difference.value
    where = (first.name, second.name, dataset.id, metric, len(pairs), len(set(clips)))
    return PairScore(*where, value, _range(found.difference), found.p_value, found.detectable)


def _paired(ours: Sequence[Record], others: Sequence[Record], where: str) -> Iterator[tuple[Record, Record]]:
    of = {record["sample_id"]: record for record in others}
    for record in ours:
        if (other := of.get(record["sample_id"])) is not None:
            if record["true"] != other["true"]:
                what = f"sample '{record['sample_id']}' has another truth than in the other arm"
                raise DataError(where, what, "compare arms on one atlas", reason="arms do not match")
            yield record, other


def _range(found: Interval) -> tuple[float, float] | None:
    return None if found.low is None or found.high is None else (found.low, found.high)


def with_holm(pairs: Iterable[PairScore]) -> tuple[PairScore, ...]:
    """The pairs with p-values adjusted for their number; those without a p-value stay without."""
    pairs = tuple(pairs)
    tested = [place for place, pair in enumerate(pairs) if pair.p_value is not None]
    adjusted = dict(zip(tested, holm([pairs[place].p_value or 0.0 for place in tested]), strict=True))
    return tuple(replace(pair, p_adjusted=adjusted.get(place)) for place, pair in enumerate(pairs))


def pairs_to_json(pairs: Sequence[PairScore]) -> str:
    return _ADAPTER.dump_json(tuple(pairs), indent=2).decode() + "\n"


def pairs_from_json(text: str, *, where: str) -> tuple[PairScore, ...]:
    """What `pairs_to_json` wrote.

    Raises:
        DataError: the text is no such comparison; `where` names the file.
    """
    return from_json(_ADAPTER, text, where=where, what="no comparison", way_out="delete the step's folder")


@dataclass(frozen=True)
class PairedRow:
    """What two arms said of one row.

    Attributes:
        true: the row's label or reference answer.
        first, second: the arms' class, or text of an open answer; None where nothing could be read.
        question: what the row asks.
        verdicts: the judge's, of both answers; None where they were not both judged.
    """

    sample_id: str
    clip_id: str
    dataset: str
    true: str
    first: str | None
    second: str | None
    question: str = ""
    verdicts: tuple[bool | None, bool | None] | None = None

    @property
    def winner(self) -> str | None:
        """`first` or `second` where just one of them is right: by the judge where it has graded both, else by their text."""
        right = [guess is not None and plain_text(guess) == plain_text(self.true) for guess in (self.first, self.second)]
        if self.verdicts is not None:
            right = [verdict is True for verdict in self.verdicts]
        return None if right[0] == right[1] else ("first" if right[0] else "second")


def pair_rows(first: pa.Table, second: pa.Table, verdicts: tuple[Verdicts, Verdicts] | None = None) -> list[PairedRow]:
    """The rows that both tables of predictions have, in the first one's order.

    Args:
        first, second: columns as in `predict.SCHEMA`.
        verdicts: a judge's, of both tables' open answers.

    Raises:
        DataError: a row has another truth or clip in the other table, or appears twice.
    """
    others = {}
    for record in second.to_pylist():
        if others.setdefault((record["dataset"], record["sample_id"]), record) is not record:
            raise DataError("second arm", f"sample '{record['sample_id']}' appears twice", reason="duplicate sample")
    rows, seen = [], set()
    for record in first.to_pylist():
        name = (record["dataset"], record["sample_id"])
        if name in seen:
            raise DataError("first arm", f"sample '{record['sample_id']}' appears twice", reason="duplicate sample")
        seen.add(name)
        if (other := others.get(name)) is None:
            continue
        if (record["true"], record["clip_id"]) != (other["true"], other["clip_id"]):
            raise DataError(
                f"{record['dataset']} {record['sample_id']}",
                "has another truth or clip in the other arm",
                "compare arms on one atlas",
                reason="arms do not match",
            )
        is_open = find_dataset(record["dataset"]).task.is_open
        column = "answer" if is_open else "predicted"
        judged = (verdicts[0].get(name), verdicts[1].get(name)) if verdicts and is_open else None
        names = (record["sample_id"], record["clip_id"], record["dataset"], record["true"])
        rows.append(PairedRow(*names, record[column], other[column], record.get("question") or "", judged))
    return rows


def differing_rows(rows: list[PairedRow]) -> list[PairedRow]:
    """The rows on which the arms do not say the same: first those that the second arm wins, then those that it loses, then the rest."""
    place = {"second": 0, "first": 1, None: 2}
    differing = [row for row in rows if plain_text(row.first or "") != plain_text(row.second or "")]
    return sorted(differing, key=lambda row: place[row.winner])


HEADER = ("dataset", "sample_id", "clip_id", "question", "true", "right")
SHOWN = 50
"""Rows of the Markdown view; the CSV has all."""


def differences(first: ArmRows, second: ArmRows) -> tuple[str, str]:
    """The rows on which two arms do not say the same, for people: as CSV, all of them, and as Markdown, the first `SHOWN`.

    Raises:
        DataError: as `pair_rows`.
    """
    both = (first.verdicts, second.verdicts)
    verdicts = None if both[0] is None or both[1] is None else (both[0], both[1])
    paired = pair_rows(first.predictions, second.predictions, verdicts)
    rows = differing_rows(paired)
    header = [*HEADER, first.name, second.name]
    names = {"first": first.name, "second": second.name, None: ""}
    cells = [
        [row.dataset, row.sample_id, row.clip_id, row.question, row.true, names[row.winner], row.first or "", row.second or ""]
        for row in rows
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *cells])
    wins = {side: sum(row.winner == side for row in rows) for side in ("first", "second")}
    said = (
        f"{len(rows)} of {len(paired)} rows differ. Only {second.name} is right on {wins['second']} of them, only {first.name} on "
        f"{wins['first']}; on the others both are wrong or both are right."
    )
    return text.getvalue(), _markdown(f"{second.name} against {first.name}", said, header, cells)


def _markdown(title: str, said: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    shown = [[" ".join(cell.split()).replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in cells[:SHOWN]]
    table = ["| " + " | ".join(row) + " |" for row in [list(header), ["---"] * len(header), *shown]]
    rest = f"\n\nThe other {len(cells) - SHOWN} are in the CSV." if len(cells) > SHOWN else ""
    return f"# {title}\n\n{said}\n\n" + "\n".join(table) + rest + "\n"
