"""Whether two arms differ: dataset by dataset, on the rows that both have predicted, corrected for having looked often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from hba_ray.data.tasks import DATASETS, Dataset
from hba_ray.errors import DataError
from hba_ray.evaluation.scores import Record, Verdicts, clips_of, dataset_seed, group_records, guesses
from hba_ray.evaluation.statistics import Interval, compare_arms, holm
from hba_ray.runtime.read_back import from_json


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
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
