"""Two arms row by row: aligned for paired tests, and the rows in which they differ for people to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from hba_ray.data.tasks import find_dataset
from hba_ray.errors import DataError
from hba_ray.evaluation.comparisons import ArmRows
from hba_ray.evaluation.metrics import plain_text
from hba_ray.evaluation.scores import Verdicts


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
