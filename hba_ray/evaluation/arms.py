"""Two arms row by row: aligned for paired tests, and the rows in which they differ for people to read."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from hba_ray.data.tasks import find_dataset
from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import plain_text


@dataclass(frozen=True)
class PairedRow:
    """What two arms said of one row.

    Attributes:
        true: the row's label or reference answer.
        first, second: the arms' class, or text of an open answer; None where nothing could be read.
    """

    sample_id: str
    clip_id: str
    dataset: str
    true: str
    first: str | None
    second: str | None

    @property
    def winner(self) -> str | None:
        """`first` or `second` where just one of them is right; for open answers, by their text."""
        right = [guess is not None and plain_text(guess) == plain_text(self.true) for guess in (self.first, self.second)]
        return None if right[0] == right[1] else ("first" if right[0] else "second")


def pair_rows(first: pa.Table, second: pa.Table) -> list[PairedRow]:
    """The rows that both tables of predictions have, in the first one's order.

    Args:
        first, second: columns as in `predict.SCHEMA`.

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
        column = "answer" if find_dataset(record["dataset"]).task.is_open else "predicted"
        rows.append(PairedRow(record["sample_id"], record["clip_id"], record["dataset"], record["true"], record[column], other[column]))
    return rows


def differing_rows(rows: list[PairedRow]) -> list[PairedRow]:
    """The rows on which the arms do not say the same: first those that the second arm wins, then those that it loses, then the rest."""
    place = {"second": 0, "first": 1, None: 2}
    differing = [row for row in rows if plain_text(row.first or "") != plain_text(row.second or "")]
    return sorted(differing, key=lambda row: place[row.winner])
