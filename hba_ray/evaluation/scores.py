"""From a table of predictions to scores per dataset, per task and per class.

A dataset's score is its task's metric over all its rows; a task's score is the mean over its
datasets (paper Figure 2). Beside each stand its interval, the majority baseline and the published score.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from hba_ray.data.predictions import ROW_COLUMNS
from hba_ray.data.tasks import DATASETS, SPLIT_SURPRISE, TASKS, Dataset
from hba_ray.data.text import quoted
from hba_ray.errors import DataError
from hba_ray.evaluation.metrics import METRICS, POLARITY, ClassScore, Merging, ScaleScore, is_counted, per_class, sentiment_scales
from hba_ray.evaluation.published import PublishedModel, published_score
from hba_ray.evaluation.statistics import bootstrap_draws, expected_calibration_error, interval, mean_or_none
from hba_ray.store.files import from_json

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (*ROW_COLUMNS, "predicted")
"""Text columns of a predictions table. Open answers also need `answer`, the model's text; `probability` is optional."""

TrainCounts = Mapping[str, Mapping[str, int]]
"""Dataset id -> label -> rows of the training split."""

Verdicts = Mapping[tuple[str, str], bool | None]
"""(dataset id, sample_id) -> what a judge says of an open answer; None where it is unreadable."""

Record = dict[str, Any]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class DatasetScore:
    """One dataset's score. Scores are in 0..1 and None where missing.

    Attributes:
        dataset: the canonical id.
        metric: a name of `metrics.METRICS`; for open answers `judge_accuracy`, or `exact_match` where nobody has judged them.
        rows: rows predicted.
        counted: rows that the metric counts; fewer than `rows` where SEN drops neutral ones.
        majority: score of the best constant prediction that the training labels suggest.
        majority_label: that prediction.
        published: the published model's score.
        classes: per class, in the order of the dataset's labels; empty for open answers.
        interval: the middle 95% of the value under resampling of whole clips.
        clips: independent clips that the value rests on.
        calibration_error: expected, of the predicted classes' probabilities (Guo et al. 2017).
        scales: sentiment on its coarser scales (Table 19); empty for other tasks.
        exact_match: of open answers that a judge has graded.
        other_matching: the value by the other rule of `evaluate.matching`; of models without classifier heads, for classes.
        unreadable: open answers for which the judge gave no readable verdict; they count as not TRUE.
    """

    dataset: str
    task: str
    metric: str
    value: float | None
    rows: int
    counted: int
    majority: float | None
    majority_label: str | None
    published: float | None
    classes: tuple[ClassScore, ...]
    interval: tuple[float, float] | None = None
    clips: int = 0
    calibration_error: float | None = None
    scales: tuple[ScaleScore, ...] = ()
    exact_match: float | None = None
    unreadable: int = 0
    other_matching: float | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether value and published score measure the same thing: not so for open answers, which the paper has judged."""
        return self.metric == TASKS[self.task].metric


@dataclass(frozen=True, config=_STRICT)
class TaskScore:
    """Means over a task's datasets.

    Attributes:
        datasets: the datasets that have a score; the other fields are means over just these, and
            None where one of them lacks the number.
        interval: the middle 95% of the value.
    """

    task: str
    metric: str
    datasets: tuple[str, ...]
    value: float | None
    majority: float | None
    published: float | None
    interval: tuple[float, float] | None = None

    @property
    def is_comparable(self) -> bool:
        return self.metric == TASKS[self.task].metric


@dataclass(frozen=True, config=_STRICT)
class Scores:
    """All scores of one set of predictions, in the order of the benchmark's tables.

    Attributes:
        published_model: whose published scores stand beside ours.
    """

    datasets: tuple[DatasetScore, ...]
    tasks: tuple[TaskScore, ...]
    published_model: PublishedModel = "OmniSapiens-7B SFT"

    def to_json(self) -> str:
        return _ADAPTER.dump_json(self, indent=2).decode() + "\n"

    @staticmethod
    def from_json(text: str | bytes, *, where: str = "scores") -> Scores:
        """The scores that `to_json` wrote.

        Raises:
            DataError: the text is no such scores; `where` names the file.
        """
        return from_json(_ADAPTER, text, where=where, what="not scores", way_out="score the predictions again")


_ADAPTER = TypeAdapter(Scores)


def score_predictions(
    predictions: pa.Table | pd.DataFrame,
    train_counts: TrainCounts,
    *,
    datasets: Iterable[str] = (),
    verdicts: Verdicts | None = None,
    published_model: PublishedModel = "OmniSapiens-7B SFT",
    merging: Merging = "with_highly",
    where: str = "predictions",
) -> Scores:
    """Score a table of predictions.

    Args:
        predictions: one row a prediction, columns as in `COLUMNS`; `predicted`, or `answer` for
            open answers, is null where nothing could be read from the model.
        train_counts: labels of the training split, for the majority baseline; a dataset left out has none.
        datasets: ids that are listed, as missing, even without a row.
        verdicts: of a judge, one for every open answer; without them open answers are scored by exact match.
        merging: rule of the five sentiment classes; see `metrics.FIVE`.
        where: names the table in errors.

    Raises:
        DataError: a column is missing or not text, a dataset is unknown or of another task, a label
            is not the dataset's, a sample_id appears twice in a dataset, or an open answer has no verdict.
    """
    groups = group_records(predictions, datasets, where)
    scored = [
        _score_dataset(dataset, groups[name], train_counts.get(name, {}), verdicts, published_model, merging, where)
        for name, dataset in DATASETS.items()
        if name in groups
    ]
    draws = {score.dataset: draws_R for score, draws_R in scored}
    return Scores(tuple(score for score, _ in scored), tuple(_score_tasks([score for score, _ in scored], draws)), published_model)


def group_records(
    predictions: pa.Table | pd.DataFrame, datasets: Iterable[str] = (), where: str = "predictions"
) -> dict[str, list[Record]]:
    """Dataset id -> its rows, by name, so that the order of a table changes no resample.

    Raises:
        DataError: a column is missing or not text, or a dataset is unknown.
    """
    groups: dict[str, list[Record]] = {dataset: [] for dataset in datasets}
    for record in sorted(_records(predictions, where), key=lambda record: record["sample_id"] or ""):
        groups.setdefault(record["dataset"], []).append(record)
    for name in groups:
        if name not in DATASETS:
            raise DataError(where, f"unknown dataset '{name}'", "predictions name datasets by their id", reason="unknown dataset")
    return groups


def guesses(dataset: Dataset, records: Sequence[Record], verdicts: Verdicts | None, where: str) -> tuple[str, list[str | None]]:
    """The metric of a dataset, and what it compares with the truth: classes, verdicts, or texts.

    Raises:
        DataError: the answers are missing, or one of them has no verdict.
    """
    if not dataset.task.is_open:
        return dataset.task.metric, [record["predicted"] for record in records]
    if records and "answer" not in records[0]:
        raise DataError(where, "column 'answer' is missing", "open answers are scored by their text", reason="missing column")
    if verdicts is None:
        return "exact_match", [record["answer"] for record in records]
    try:
        said = [verdicts[dataset.id, record["sample_id"]] for record in records]
    except KeyError as cause:
        raise DataError(where, f"sample '{cause.args[0][1]}' was not judged", "judge every open answer", reason="not judged") from None
    return "judge_accuracy", [None if correct is None else str(correct).upper() for correct in said]


def clips_of(records: Sequence[Record]) -> list[str]:
    """The clip of each row; a row without one is its own."""
    return [record["clip_id"] or record["sample_id"] for record in records]


def dataset_seed(dataset: str) -> int:
    """Seed of a dataset's resamples: its own, so that two datasets are resampled independently; the same in all arms."""
    return zlib.crc32(dataset.encode())


def majority_label(task: str, train_counts: Mapping[str, int]) -> str | None:
    """The most frequent training label among those that the task's metric counts; the first by name where several are.

    For SEN it is the more frequent polarity: a constant "neutral" scores 0 by definition and would
    make any model look good.

    >>> majority_label("SEN", {"neutral": 90, "weakly negative": 4, "highly negative": 3, "positive": 5})
    'negative'
    """
    totals: Counter[str] = Counter()
    for label, rows in train_counts.items():
        if rows > 0 and is_counted(label, task):
            totals[POLARITY[label] if task == "SEN" else label] += rows
    return min(totals, key=lambda label: (-totals[label], label), default=None)


def _score_dataset(
    dataset: Dataset,
    records: list[Record],
    train_counts: Mapping[str, int],
    verdicts: Verdicts | None,
    model: PublishedModel,
    merging: Merging,
    where: str,
) -> tuple[DatasetScore, np.ndarray]:
    """The score, and [R] its resamples."""
    where = f"{where} ({dataset.id})"
    task = dataset.task
    metric, predicted = guesses(dataset, records, verdicts, where)
    true, clips = _truths(dataset, records, where), clips_of(records)
    constant = None if metric == "judge_accuracy" else majority_label(task.id, train_counts)
    value = METRICS[metric](true, predicted)
    draws_R = bootstrap_draws(metric, true, predicted, clips, seed=dataset_seed(dataset.id))
    score = DatasetScore(
        dataset=dataset.id,
        task=task.id,
        metric=metric,
        value=value,
        rows=len(true),
        counted=sum(is_counted(label, task.id) for label in true),
        majority=None if constant is None else METRICS[metric](true, [constant] * len(true)),
        majority_label=constant,
        published=published_score(model, dataset.id),
        classes=() if task.is_open else tuple(per_class(true, predicted, _classes(dataset, true))),
        interval=interval(value, draws_R, 0).bounds,
        clips=len(set(clips)),
        calibration_error=None if task.is_open else _calibration_error(records),
        scales=tuple(sentiment_scales(true, predicted, dataset.labels, merging)) if task.id == "SEN" else (),
        exact_match=METRICS["exact_match"](true, [record["answer"] for record in records]) if metric == "judge_accuracy" else None,
        unreadable=predicted.count(None) if metric == "judge_accuracy" else 0,
        other_matching=None if task.is_open else _other_matching(metric, true, records),
    )
    return score, draws_R


def _other_matching(metric: str, true: Sequence[str], records: Sequence[Record]) -> float | None:
    """The score of the classes that the other rule of matching reads; None where no response was read."""
    if not any("otherwise" in record and record.get("response") is not None for record in records):
        return None
    return METRICS[metric](true, [record["otherwise"] for record in records])


def _calibration_error(records: Sequence[Record]) -> float | None:
    """Over the rows whose prediction has a probability."""
    sure = [(record["probability"], record["predicted"] == record["true"]) for record in records if record.get("probability") is not None]
    return expected_calibration_error([probability for probability, _ in sure], [right for _, right in sure])


def _score_tasks(scores: Sequence[DatasetScore], draws: Mapping[str, np.ndarray]) -> Iterator[TaskScore]:
    for task in TASKS:
        listed = [score for score in scores if score.task == task]
        scored = [score for score in _counted(listed) if score.value is not None]
        if listed:
            value = mean_or_none(score.value for score in scored)
            yield TaskScore(
                task=task,
                metric=listed[0].metric,
                datasets=tuple(score.dataset for score in scored),
                value=value,
                majority=mean_or_none(score.majority for score in scored),
                published=mean_or_none(score.published for score in scored),
                interval=interval(value, np.mean([draws[score.dataset] for score in scored], axis=0), 0).bounds if scored else None,
            )


def _counted(scores: Sequence[DatasetScore]) -> Sequence[DatasetScore]:
    """Those of a task that its mean is over: not those outside the benchmark, unless there are no others."""
    inside = [score for score in scores if not DATASETS[score.dataset].is_outside]
    return inside or scores


def _records(predictions: pa.Table | pd.DataFrame, where: str) -> list[Record]:
    try:
        table = predictions if isinstance(predictions, pa.Table) else pa.Table.from_pandas(predictions, preserve_index=False)
    except pa.ArrowException as cause:
        raise DataError(where, f"a column mixes types: {cause}", "predictions are text", reason="wrong type") from cause
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise DataError(where, f"columns are missing: {', '.join(missing)}", f"needed: {', '.join(COLUMNS)}", reason="missing column")
    table = table.select([name for name in (*COLUMNS, "answer", "response", "otherwise", "probability") if name in table.column_names])
    for column in table.schema:
        if column.name != "probability" and not _is_text(column.type):
            raise DataError(where, f"column '{column.name}' is {column.type}, not text", reason="wrong type")
    return table.to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)


def _truths(dataset: Dataset, records: list[Record], where: str) -> list[str]:
    """The true labels or answers, once every row is known to belong to the dataset."""
    truths: list[str] = []
    seen: set[str] = set()
    for record in records:
        sample, truth = record["sample_id"], record["true"]
        if sample is None or truth is None:
            raise DataError(where, f"row {len(truths)} has no {'sample_id' if sample is None else 'true label'}", reason="missing value")
        if sample in seen:
            raise DataError(
                where,
                f"sample '{sample}' is predicted twice",
                "give each row of the atlas a sample_id of its own",
                reason="duplicate sample",
            )
        if record["task"] != dataset.task.id:
            raise DataError(where, f"sample '{sample}' has task '{record['task']}', not {dataset.task.id}", reason="wrong task")
        if not dataset.task.is_open and truth not in dataset.labels and not _is_split_surprise(truth, dataset):
            said = quoted(truth, is_sensitive=dataset.sensitive)
            raise DataError(where, f"sample '{sample}': {said} is none of {', '.join(dataset.labels)}", reason="unknown label")
        seen.add(sample)
        truths.append(truth)
    return truths


def _is_split_surprise(label: str, dataset: Dataset) -> bool:
    return label in SPLIT_SURPRISE and "surprise" in dataset.labels


def _classes(dataset: Dataset, truths: Sequence[str]) -> tuple[str, ...]:
    """The dataset's labels, and the two surprises where its rows tell them apart."""
    return (*dataset.labels, *(label for label in SPLIT_SURPRISE if label in truths))
