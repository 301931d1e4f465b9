"""The benchmark's metrics on lists of label names (paper section 3.3 and appendix A.5).

Every function takes the true labels and the predictions of the same rows, in the same order. A
prediction that is no class of the rows (another text, or None where nothing could be read from a
model's answer) is a miss of the true class and a false positive of none. Where no row counts, the
value is None: missing, not zero.

Letters: K classes, L = K + 1 columns of predictions, the last for those that are no class.

Sentiment on coarser and coarser scales: seven, five, three and two classes (paper appendix D.11, Table 19).

A scale is used where the dataset has at least that many classes: classes can be merged, not split.
Five classes are the seven with `negative` joined to `highly negative`, and so on the other side, as
is usual for CMU-MOSEI; CH-SIMS v2 has just these. Two are positive and negative, neutral rows left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hba_ray.data.prompts import plain_text
from hba_ray.data.tasks import TASKS
from hba_ray.errors import DataError

Predictions = Sequence[str | None]

POLARITIES = ("negative", "positive")
POLARITY: dict[str, str] = {label: label.split()[-1] for label in TASKS["SEN"].labels}
"""Label of a 7, 5 or 3 point sentiment scale -> negative, neutral or positive."""

_OTHER = -1
"""The code of a prediction that is no class of the rows."""


@dataclass(frozen=True)
class ClassScore:
    """How one class fares. All shares are in 0..1.

    Attributes:
        precision: None where the class is never predicted.
        recall: None where the class has no true row.
        f1: None where the class has no true row.
        support: true rows of the class.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def weighted_f1(true: Sequence[str], predicted: Predictions) -> float | None:
    """F1 of each class present in `true`, weighted by its rows: HUM, SAR, ANX, DEP, PTSD.

    Source: paper appendix A.5; released training/sft/evaluate/detailed_multi_task_evaluation.py.

    >>> round(weighted_f1(["ptsd", "ptsd", "ptsd", "no ptsd"], ["ptsd", "ptsd", None, "no ptsd"]), 3)  # 3/4 x 0.8 + 1/4 x 1
    0.85

    Returns:
        0..1, or None without rows.

    Raises:
        DataError: the two differ in length.
    """
    return _weighted_f1(true, predicted, sorted(set(true)))


def binary_weighted_f1(true: Sequence[str], predicted: Predictions) -> float | None:
    """Weighted F1 of negative against positive, whatever the points of the scale: SEN.

    Rows whose truth is neutral do not count. The paper leaves open what a neutral prediction of
    another row is; as in the released code it is a miss.

    Source: paper section 3.3 and appendix A.5; released training/sft/evaluate/helper_senti.py, its F1w2.

    >>> true = ["highly negative", "negative", "weakly negative", "neutral", "positive"]
    >>> predicted = ["negative", "weakly negative", "neutral", "positive", "weakly positive"]
    >>> round(binary_weighted_f1(true, predicted), 3)  # 3/4 x 0.8 + 1/4 x 1
    0.85

    Returns:
        0..1, or None where no row is negative or positive.

    Raises:
        DataError: the two differ in length, or a true label is on no sentiment scale.
    """
    _check_lengths(true, predicted)
    pairs = [(POLARITY.get(label, label), POLARITY.get(guess or "")) for label, guess in zip(true, predicted, strict=True)]
    counted = [pair for pair in pairs if pair[0] != "neutral"]
    return _weighted_f1([label for label, _ in counted], [guess for _, guess in counted], POLARITIES)


def mean_weighted_accuracy(true: Sequence[str], predicted: Predictions) -> float | None:
    """Mean of 0.5 (TP / P + TN / N) over the classes present in `true`: EMO.

    Where all rows are of one class there are no negatives, and TN / N is taken as 0.

    Source: paper section 3.3 and appendix A.5; released training/sft/evaluate/helper_emo.py.

    >>> mean_weighted_accuracy(["anger", "anger", "sad", "sad"], ["anger", None, "sad", "sad"])  # anger 0.75, sad 1
    0.875

    Returns:
        0..1, or None without rows.

    Raises:
        DataError: the two differ in length.
    """
    counts_KL = confusion(true, predicted, sorted(set(true)))
    if counts_KL.size == 0:
        return None
    hits_K = np.diagonal(counts_KL)
    positives_K = counts_KL.sum(axis=1)
    false_alarms_K = counts_KL[:, :-1].sum(axis=0) - hits_K
    negatives_K = positives_K.sum() - positives_K
    specificity_K = (negatives_K - false_alarms_K) / np.maximum(negatives_K, 1)
    return float(np.mean(0.5 * (hits_K / positives_K + specificity_K)))


def exact_match(true: Sequence[str], predicted: Predictions) -> float | None:
    """Share of open answers that equal their reference, case and outer white space aside.

    This is not the paper's measure of SOC, INT and NVC: there a language model judges whether an
    answer means the same, so the two numbers must not be compared. A wrong wording is a miss here.

    Source: the text comparison of the released training/rl/reward_function.py.

    >>> exact_match(["To apologise", "a wall"], [" to apologise ", "He touches a wall"])
    0.5

    Returns:
        0..1, or None without rows.

    Raises:
        DataError: the two differ in length.
    """
    _check_lengths(true, predicted)
    if not true:
        return None
    hits = [guess is not None and plain_text(label) == plain_text(guess) for label, guess in zip(true, predicted, strict=True)]
    return float(np.mean(hits))


def judge_accuracy(true: Sequence[str], predicted: Predictions) -> float | None:
    """Share of open answers that the judge calls TRUE: SOC, INT, NVC. One without a readable verdict is not TRUE.

    Source: paper section 3.3 and appendix A.5.

    >>> judge_accuracy(["a wall", "a door"], ["TRUE", None])
    0.5

    Args:
        true: reference answers; only their number matters, since the judge has read them.
        predicted: "TRUE", "FALSE" or None.

    Returns:
        0..1, or None without rows.

    Raises:
        DataError: the two differ in length.
    """
    _check_lengths(true, predicted)
    return float(np.mean([verdict == "TRUE" for verdict in predicted])) if true else None


METRICS: dict[str, Callable[[Sequence[str], Predictions], float | None]] = {
    "binary_weighted_f1": binary_weighted_f1,
    "mean_weighted_accuracy": mean_weighted_accuracy,
    "weighted_f1": weighted_f1,
    "exact_match": exact_match,
    "judge_accuracy": judge_accuracy,
}


def is_counted(label: str, task: str) -> bool:
    """Whether a row with this truth enters its task's metric: all rows but the neutral ones of SEN.

    >>> is_counted("neutral", "SEN"), is_counted("neutral", "EMO")
    (False, True)
    """
    return task != "SEN" or POLARITY.get(label) in POLARITIES


def per_class(true: Sequence[str], predicted: Predictions, labels: Sequence[str]) -> list[ClassScore]:
    """Precision, recall, F1 and support of each of `labels`, in their order.

    >>> per_class(["sad", "sad"], ["sad", "fear"], ["sad", "calm"])[0]
    ClassScore(label='sad', precision=1.0, recall=0.5, f1=0.6666666666666666, support=2)

    Raises:
        DataError: the two differ in length, or a true label is none of `labels`.
    """
    from sklearn.metrics import precision_recall_fscore_support

    true_codes, guess_codes = _codes(true, predicted, labels)
    if not true_codes:
        return [ClassScore(label, None, None, None, 0) for label in labels]
    shares = precision_recall_fscore_support(true_codes, guess_codes, labels=list(range(len(labels))), average=None, zero_division=np.nan)  # pyright: ignore[reportArgumentType]
    return [
        ClassScore(label, _known(precision), _known(recall), _known(f1) if support else None, int(support))
        for label, precision, recall, f1, support in zip(labels, *map(np.asarray, shares), strict=True)
    ]


def confusion(true: Sequence[str], predicted: Predictions, labels: Sequence[str]) -> np.ndarray:
    """Rows by truth and prediction.

    >>> confusion(["sad", "sad", "fear"], ["sad", None, "sad"], ["fear", "sad"]).tolist()
    [[0, 1, 0], [0, 1, 1]]

    Returns:
        [K, L] integers: truth by prediction; the last column holds predictions that are none of `labels`.

    Raises:
        DataError: the two differ in length, or a true label is none of `labels`.
    """
    from sklearn.metrics import confusion_matrix

    true_codes, guess_codes = _codes(true, predicted, labels)
    size = len(labels)
    if not true_codes:
        return np.zeros((size, size + 1), dtype=np.int64)
    return confusion_matrix(true_codes, guess_codes, labels=[*range(size), _OTHER])[:size]


def _weighted_f1(true: Sequence[str], predicted: Predictions, labels: Sequence[str]) -> float | None:
    from sklearn.metrics import f1_score

    true_codes, guess_codes = _codes(true, predicted, labels)
    if not true_codes:
        return None
    return float(f1_score(true_codes, guess_codes, labels=list(range(len(labels))), average="weighted", zero_division=0))  # pyright: ignore[reportArgumentType]


def _codes(true: Sequence[str], predicted: Predictions, labels: Sequence[str]) -> tuple[list[int], list[int]]:
    """Truth and prediction as places in `labels`. Numbers, since numpy's text arrays cut trailing NULs and hold no None."""
    _check_lengths(true, predicted)
    place: dict[str | None, int] = {label: index for index, label in enumerate(labels)}
    stray = sorted(set(true) - set(labels))
    if stray:
        raise DataError("metrics", f"'{stray[0]}' is none of the classes ({', '.join(labels)})", reason="unknown label")
    return [place[label] for label in true], [place.get(guess, _OTHER) for guess in predicted]


def _check_lengths(true: Sequence[str], predicted: Predictions) -> None:
    if len(true) != len(predicted):
        raise DataError(
            "metrics", f"{len(true)} true labels but {len(predicted)} predictions", "give one prediction a row", reason="lengths differ"
        )


def _known(share: float) -> float | None:
    return None if np.isnan(share) else float(share)


_SEVEN = {label: label for label in TASKS["SEN"].labels}
_FIVE = _SEVEN | {"negative": "highly negative", "positive": "highly positive"}
SCALES: dict[int, dict[str, str]] = {7: _SEVEN, 5: _FIVE, 3: POLARITY}
"""Classes of a scale -> label of any scale -> its class there."""


@dataclass(frozen=True)
class ScaleScore:
    """Scores on one scale, 0..1; None where no row counts.

    Attributes:
        classes: of the scale.
        rows: rows that count.
    """

    classes: int
    rows: int
    accuracy: float | None
    weighted_f1: float | None


def sentiment_scales(true: Sequence[str], predicted: Predictions, labels: Sequence[str]) -> list[ScaleScore]:
    """Scores on every scale that the dataset has the classes for, the finest first.

    A prediction that is no sentiment is a miss on every scale.

    >>> scores = sentiment_scales(["negative", "positive"], ["positive", "positive"], ["negative", "neutral", "positive"])
    >>> [(score.classes, score.accuracy) for score in scores]
    [(3, 0.5), (2, 0.5)]

    Args:
        labels: all classes of the dataset.

    Raises:
        DataError: the lists differ in length, or a true label is no sentiment.
    """
    two = binary_weighted_f1(true, predicted)  # checks the lists
    scores = []
    for classes, merged in SCALES.items():
        if classes <= len(labels):
            ours, theirs = [merged[label] for label in true], [merged.get(guess or "") for guess in predicted]
            scores.append(ScaleScore(classes, len(ours), exact_match(ours, theirs), weighted_f1(ours, theirs)))
    polar = [(POLARITY[label], POLARITY.get(guess or "")) for label, guess in zip(true, predicted, strict=True)]
    polar = [(label, guess) for label, guess in polar if label in POLARITIES]
    accuracy = exact_match([label for label, _ in polar], [guess for _, guess in polar])
    return [*scores, ScaleScore(2, len(polar), accuracy, two)]
