"""Two arms side by side, on the rows that both have predicted: aligned, tested dataset by dataset, and listed where they differ.

`shared_rows` is the only place that aligns arms. `compare_tables` tests whether two arms differ, and `with_holm` corrects
for the number of such tests. `differences` lists the rows on which two arms do not say the same, for people to read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from hba_ray.data.predictions import NOT_SHOWN
from hba_ray.data.prompts import plain_text
from hba_ray.data.tasks import DATASETS, Dataset, find_dataset
from hba_ray.errors import DataError
from hba_ray.escaping import csv_cell, markdown_cell, markdown_line
from hba_ray.evaluation.scores import Record, Verdicts, clips_of, dataset_seed, group_records, guesses
from hba_ray.evaluation.statistics import compare_arms, holm
from hba_ray.store.files import from_json


class ArmRows(NamedTuple):
    """What one arm said.

    Attributes:
        predictions: columns as in `predict.SCHEMA`.
        verdicts: of a judge; None where its open answers were not judged.
    """

    name: str
    predictions: pa.Table
    verdicts: Verdicts | None = None


class ArmRecords(NamedTuple):
    """What one arm said of one dataset.

    Attributes:
        name: of the arm, for messages.
        verdicts: of a judge, on all datasets; None where the arm's open answers were not judged.
    """

    name: str
    records: Sequence[Record]
    verdicts: Verdicts | None = None


@dataclass(frozen=True)
class SharedRows:
    """The rows of one dataset that two arms have both predicted, as a metric takes them.

    Attributes:
        metric: a name of `metrics.METRICS`.
        true, first, second, clips: truth, the two arms' predictions, and clip of each row.
    """

    metric: str
    true: list[str]
    first: list[str | None]
    second: list[str | None]
    clips: list[str]


def shared_rows(dataset: Dataset, first: ArmRecords, second: ArmRecords, measure: str = "") -> SharedRows:
    """Aligns two arms by row.

    Open answers are taken by verdict where both arms were judged, by their text otherwise.

    Args:
        measure: a name of `metrics.METRICS`; the dataset's own metric where it is empty.

    Raises:
        DataError: as `pair_records`, or a verdict is missing.
    """
    pairs = pair_records(first.records, second.records)
    ours, others = [one for one, _ in pairs], [other for _, other in pairs]
    are_judged = first.verdicts is not None and second.verdicts is not None and measure != "exact_match"
    metric, left = guesses(dataset, ours, first.verdicts if are_judged else None, f"{first.name} ({dataset.id})")
    _, right = guesses(dataset, others, second.verdicts if are_judged else None, f"{second.name} ({dataset.id})")
    return SharedRows(measure or metric, [one["true"] for one in ours], left, right, clips_of(ours))


def pair_records(first: Iterable[Record], second: Iterable[Record]) -> list[tuple[Record, Record]]:
    """The rows that both arms have, in the first one's order.

    Raises:
        DataError: a row appears twice in one arm, or has another truth or clip in the other.
    """
    ones, others = _by_name(first, "first"), _by_name(second, "second")
    pairs = [(one, others[name]) for name, one in ones.items() if name in others]
    for one, other in pairs:
        if (one["true"], one["clip_id"]) != (other["true"], other["clip_id"]):
            raise DataError(
                f"{one['dataset']} {one['sample_id']}",
                "has another truth or clip in the other arm",
                "compare arms on one atlas",
                reason="arms do not match",
            )
    return pairs


def _by_name(records: Iterable[Record], which: str) -> dict[tuple[str, str], Record]:
    named: dict[tuple[str, str], Record] = {}
    for record in records:
        if named.setdefault((record["dataset"], record["sample_id"]), record) is not record:
            raise DataError(f"{which} arm", f"sample '{record['sample_id']}' appears twice", reason="duplicate sample")
    return named


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PairScore:
    """Second arm minus first arm on one dataset.

    Attributes:
        rows: that both arms have predicted; `clips` of them are independent.
        difference: of the dataset's metric; None where it is missing, and then so is the rest.
        interval: the middle 95% of the difference under resampling of whole clips.
        p_value: of the paired permutation test, two-sided.
        p_adjusted: the p-value after Holm's correction over all pairs of a report.
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


def compare_tables(first: ArmRows, second: ArmRows) -> tuple[PairScore, ...]:
    """Tests whether two arms differ, on every dataset that both have rows of, in the benchmark's order.

    Raises:
        DataError: as `scores.group_records` or `shared_rows`.
    """
    ours, others = (group_records(arm.predictions, where=arm.name) for arm in (first, second))
    return tuple(
        _compare(dataset, ArmRecords(first.name, ours[name], first.verdicts), ArmRecords(second.name, others[name], second.verdicts))
        for name, dataset in DATASETS.items()
        if name in ours and name in others
    )


def _compare(dataset: Dataset, first: ArmRecords, second: ArmRecords) -> PairScore:
    rows = shared_rows(dataset, first, second)
    found = compare_arms(rows.metric, rows.true, rows.first, rows.second, rows.clips, seed=dataset_seed(dataset.id))
    return PairScore(
        first=first.name,
        second=second.name,
        dataset=dataset.id,
        metric=rows.metric,
        rows=len(rows.true),
        clips=found.difference.clips,
        difference=found.difference.value,
        interval=found.difference.bounds,
        p_value=found.p_value,
        detectable=found.detectable,
    )


def with_holm(pairs: Iterable[PairScore]) -> tuple[PairScore, ...]:
    """The pairs with p-values adjusted for their number (Holm 1979); those without a p-value stay without."""
    pairs = tuple(pairs)
    tested = [place for place, pair in enumerate(pairs) if pair.p_value is not None]
    adjusted = dict(zip(tested, holm([pairs[place].p_value or 0.0 for place in tested]), strict=True))
    return tuple(replace(pair, p_adjusted=adjusted.get(place)) for place, pair in enumerate(pairs))


def pairs_to_json(pairs: Sequence[PairScore]) -> str:
    return _ADAPTER.dump_json(tuple(pairs), indent=2).decode() + "\n"


def pairs_from_json(text: str | bytes, *, where: str) -> tuple[PairScore, ...]:
    """The comparisons that `pairs_to_json` wrote.

    Raises:
        DataError: the text is no such comparison; `where` names the file.
    """
    return from_json(_ADAPTER, text, where=where, what="no comparison", way_out="delete the step's folder")


@dataclass(frozen=True)
class PairedRow:
    """What two arms said of one row.

    Attributes:
        clip_id: the recording that it is about; a row without one is its own.
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
        DataError: as `pair_records`.
    """
    rows = []
    for one, other in pair_records(first.to_pylist(), second.to_pylist()):
        name = (one["dataset"], one["sample_id"])
        is_open = find_dataset(one["dataset"]).task.is_open
        column = "answer" if is_open else "predicted"
        judged = (verdicts[0].get(name), verdicts[1].get(name)) if verdicts and is_open else None
        names = (one["sample_id"], one["clip_id"] or one["sample_id"], one["dataset"], one["true"])
        rows.append(PairedRow(*names, one[column], other[column], one.get("question") or "", judged))
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
    """The rows on which two arms do not say the same, for people: as CSV, all of them, and as Markdown, the first `SHOWN`. Texts of
    sensitive datasets are left out.

    Raises:
        DataError: as `pair_records`.
    """
    both = (first.verdicts, second.verdicts)
    verdicts = None if both[0] is None or both[1] is None else (both[0], both[1])
    paired = pair_rows(first.predictions, second.predictions, verdicts)
    rows = differing_rows(paired)
    header = [*HEADER, first.name, second.name]
    names = {"first": first.name, "second": second.name, None: ""}
    cells = [_cells(row, names[row.winner]) for row in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([csv_cell(cell) for cell in row] for row in [header, *cells])
    wins = {side: sum(row.winner == side for row in rows) for side in ("first", "second")}
    said = (
        f"{len(rows)} of {len(paired)} rows differ. Only {second.name} is right on {wins['second']} of them, only {first.name} on "
        f"{wins['first']}; on the others both are wrong or both are right."
    )
    return text.getvalue(), _markdown(f"{second.name} against {first.name}", said, header, cells)


def _cells(row: PairedRow, right: str) -> list[str]:
    """The cells of a row, in the order of HEADER, then what both arms say."""
    known = find_dataset(row.dataset)
    said = [row.true, row.first or "", row.second or ""]
    if known.sensitive and known.task.is_open:
        said = [text and NOT_SHOWN for text in said]
    question = NOT_SHOWN if known.sensitive else row.question
    return [row.dataset, row.sample_id, row.clip_id, question, said[0], right, *said[1:]]


def _markdown(title: str, said: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    shown = [list(map(markdown_cell, row)) for row in cells[:SHOWN]]
    table = ["| " + " | ".join(row) + " |" for row in [list(map(markdown_cell, header)), ["---"] * len(header), *shown]]
    rest = f"\n\nThe other {len(cells) - SHOWN} are in the CSV." if len(cells) > SHOWN else ""
    return f"# {markdown_line(title)}\n\n{markdown_line(said)}\n\n" + "\n".join(table) + rest + "\n"
