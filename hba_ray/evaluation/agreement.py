"""How far two graders agree: judges, prompts, or a person's labels (paper appendix D.10, Table 18)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hba_ray.errors import DataError
from hba_ray.escaping import text_of_csv_cell
from hba_ray.evaluation.metrics import CountMetric, Pair
from hba_ray.evaluation.statistics import Interval, bootstrap_interval

Labels = Mapping[str, bool | None]
"""Name of a row -> verdict of one grader; None where there is no readable one."""

_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": None}


@dataclass(frozen=True)
class Agreement:
    """How far two graders agree, on the rows that both have graded.

    Attributes:
        kappa: Cohen's kappa with its interval; its value is None where both give one and the same
            verdict throughout, which leaves nothing to agree on beyond chance.
        share: share of equal verdicts, 0..1; None without rows.
        rows: rows with a readable verdict of both.
        unreadable: rows that both were given and one of them has no readable verdict for.
        unshared: rows that only one of them was given.
    """

    kappa: Interval
    share: float | None
    rows: int
    unreadable: int
    unshared: int


class CohenKappa(CountMetric):
    """Agreement beyond chance of two graders: 1 perfect, 0 as by chance; missing without rows, or where chance alone agrees fully.

    >>> cohen_kappa(["TRUE", "TRUE", "FALSE", "FALSE"], ["TRUE", "FALSE", "FALSE", "FALSE"])
    0.5
    """

    def on_counts(self, pairs: Sequence[Pair], counts_RP: np.ndarray) -> np.ndarray:
        places = {verdict: place for place, verdict in enumerate(sorted({str(verdict) for pair in pairs for verdict in pair}))}
        counts_RKK = np.zeros((len(counts_RP), len(places), len(places)))
        for (first, second), counts_R in zip(pairs, counts_RP.T, strict=True):
            counts_RKK[:, places[first], places[str(second)]] += counts_R
        differs_KK = 1 - np.eye(len(places))
        by_first_RK, by_second_RK = counts_RKK.sum(2), counts_RKK.sum(1)
        rows_R11 = np.maximum(counts_RKK.sum((1, 2), keepdims=True), 1)
        seen_R = (counts_RKK * differs_KK).sum((1, 2))
        by_chance_R = (by_second_RK[:, :, None] * by_first_RK[:, None, :] / rows_R11 * differs_KK).sum((1, 2))
        return np.where(by_chance_R > 0, 1 - seen_R / np.where(by_chance_R > 0, by_chance_R, 1), np.nan)


cohen_kappa = CohenKappa()


def agree(first: Labels, second: Labels, *, clips: Mapping[str, str] | None = None, resamples: int = 1000, seed: int = 0) -> Agreement:
    """Compares two graders row by row.

    Args:
        clips: sample_id -> clip_id, to resample whole clips in the interval; each row is its own clip by default.

    Raises:
        DataError: a row's clip is not known.
    """
    shared = [sample for sample in first if sample in second]
    both = [sample for sample in shared if first[sample] is not None and second[sample] is not None]
    ones, others = [str(first[sample]) for sample in both], [str(second[sample]) for sample in both]
    try:
        of_clips = both if clips is None else [clips[sample] for sample in both]
    except KeyError as cause:
        raise DataError("agreement", f"sample {cause} has no clip", "give the clip of every row", reason="missing value") from None
    return Agreement(
        kappa=bootstrap_interval(cohen_kappa, ones, others, of_clips, resamples=resamples, seed=seed),
        share=sum(one == other for one, other in zip(ones, others, strict=True)) / len(both) if both else None,
        rows=len(both),
        unreadable=len(shared) - len(both),
        unshared=len(first) + len(second) - 2 * len(shared),
    )


def read_labels(file: Path) -> dict[str, bool | None]:
    """A person's labels: a CSV with the columns `sample_id` and `label` (TRUE, FALSE, yes, no, 1, 0; empty is undecided).

    Where there is a column `dataset`, rows are named "dataset sample_id".

    Raises:
        DataError: a column is missing, a label is another word, or a row appears twice; names the line.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            missing = {"sample_id", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    str(file), f"has no column {', '.join(sorted(missing))}", "needed: sample_id, label", reason="missing column"
                )
            return _once_each(((_name(record), _label(record["label"], file, reader.line_num)) for record in reader), str(file))
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise DataError(str(file), f"cannot be read: {cause}", "give a CSV in UTF-8", reason="not readable") from None


def _name(record: Mapping[str, str]) -> str:
    dataset, sample = (text_of_csv_cell(record.get(column) or "") for column in ("dataset", "sample_id"))
    return f"{dataset} {sample}" if dataset else sample


def _label(word: str | None, file: Path, line: int) -> bool | None:
    plain = (word or "").strip().lower()
    if plain not in _WORDS:
        raise DataError(f"{file}:{line}", f"label {word!r} is no verdict", "give TRUE or FALSE", reason="unknown label")
    return _WORDS[plain]


def _once_each(labels: Iterable[tuple[str, bool | None]], where: str) -> dict[str, bool | None]:
    once: dict[str, bool | None] = {}
    for sample, label in labels:
        if sample in once:
            raise DataError(where, f"sample '{sample}' appears twice", "give one verdict a row", reason="duplicate sample")
        once[sample] = label
    return once


def labels_of(file: Path, names: Iterable[str]) -> dict[str, bool | None]:
    """A person's labels by "dataset sample_id", as a judge's verdicts are named; the file may leave the dataset out.

    Args:
        names: "dataset sample_id" of each judged answer.

    Raises:
        DataError: as `read_labels`; or a label is of no judged row, or of rows of two datasets.
    """
    known: dict[str, list[str]] = {}
    for name in names:
        known.setdefault(name, []).append(name)
        known.setdefault(name.partition(" ")[2], []).append(name)
    named: dict[str, bool | None] = {}
    for sample, label in read_labels(file).items():
        found = known.get(sample, [])
        if len(found) != 1:
            what = "is no open answer of this arm" if not found else f"is in {len(found)} datasets"
            raise DataError(str(file), f"sample '{sample}' {what}", "give the columns dataset, sample_id, label", reason="unknown row")
        named[found[0]] = label
    return named
