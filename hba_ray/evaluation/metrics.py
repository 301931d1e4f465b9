"""The benchmark's metrics: each is defined once, on counts, which serve its value and its resamples alike.

A metric depends on how often each pair of truth and prediction occurs, and on nothing else (paper section 3.3 and
appendix A.5). It takes these counts for many resamples at once. Called with the rows themselves, it counts them first.

A prediction that is no class of the rows (another text, or None where nothing could be read from a model's answer)
is a miss of the true class and a false positive of none. Where no row counts, the value is missing, not zero.

To add a metric, derive a class from `CountMetric` and name it in `METRICS`; a task that has it as its own says so in
`data/tasks.py`.

Letters: R resamples, P distinct pairs of truth and prediction, K classes, L = K + 1 columns of predictions, the last
for those that are no class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from hba_ray.data.prompts import plain_text
from hba_ray.data.tasks import TASKS
from hba_ray.errors import DataError

Guesses = Sequence[str | None]
"""What was predicted of each row; None where nothing could be read from a model's answer."""
Pair = tuple[str, str | None]
"""A truth, and what was predicted of it."""

POLARITIES = ("negative", "positive")
POLARITY: dict[str, str] = {label: label.split()[-1] for label in TASKS["SEN"].labels}
"""Label of a 7, 5 or 3 point sentiment scale -> negative, neutral or positive."""

_OTHER = -1
"""The code of a prediction that is no class of the rows."""


class CountMetric(ABC):
    """A score in 0..1 (kappa: -1..1) that is a function of the counts of pairs."""

    def pair(self, true: str, predicted: str | None) -> Pair:
        """What the metric looks at in a row, where that is less than the whole truth and the whole prediction.

        Raises:
            DataError: the truth is none that the metric knows.
        """
        return true, predicted

    @abstractmethod
    def on_counts(self, pairs: Sequence[Pair], counts_RP: np.ndarray) -> np.ndarray:
        """[R] the score of each row of counts; NaN where it is missing.

        Args:
            pairs: P distinct ones, each as `pair` gives it.
            counts_RP: how often each of them occurs; whole numbers as float64.
        """

    def __call__(self, true: Sequence[str], predicted: Guesses) -> float | None:
        """The score of rows; None where it is missing.

        Raises:
            DataError: the two differ in length, or a truth is none that the metric knows.
        """
        counts = Counter(self.pairs(true, predicted))
        (score,) = self.on_counts(list(counts), np.array([list(counts.values())], dtype=float))
        return None if np.isnan(score) else float(score)

    def pairs(self, true: Sequence[str], predicted: Guesses) -> list[Pair]:
        """`pair` of every row.

        Raises:
            DataError: as when the metric is called.
        """
        _check_lengths(true, predicted)
        return [self.pair(label, guess) for label, guess in zip(true, predicted, strict=True)]


class WeightedF1(CountMetric):
    """F1 of each class that is a truth, weighted by its rows: HUM, SAR, ANX, DEP, PTSD.

    Source: paper appendix A.5; released training/sft/evaluate/detailed_multi_task_evaluation.py.

    >>> round(weighted_f1(["ptsd", "ptsd", "ptsd", "no ptsd"], ["ptsd", "ptsd", None, "no ptsd"]), 3)  # 3/4 x 0.8 + 1/4 x 1
    0.85
    """

    def on_counts(self, pairs: Sequence[Pair], counts_RP: np.ndarray) -> np.ndarray:
        tally = _tally(pairs, counts_RP, _classes(pairs))
        return _share((tally.true_RK * tally.f1_RK).sum(1), tally.true_RK.sum(1))


class BinaryWeightedF1(WeightedF1):
    """Weighted F1 of negative against positive, whatever the points of the scale: SEN.

    Rows whose truth is neutral do not count. The paper leaves open what a neutral prediction of
    another row is; as in the released code it is a miss.

    Source: paper section 3.3 and appendix A.5; released training/sft/evaluate/helper_senti.py, its F1w2.

    >>> true = ["highly negative", "negative", "weakly negative", "neutral", "positive"]
    >>> predicted = ["negative", "weakly negative", "neutral", "positive", "weakly positive"]
    >>> round(binary_weighted_f1(true, predicted), 3)  # 3/4 x 0.8 + 1/4 x 1
    0.85
    """

    def pair(self, true: str, predicted: str | None) -> Pair:
        """
        Raises:
            DataError: the truth is on no sentiment scale.
        """
        if true not in POLARITY:
            raise _unknown(true, POLARITIES)
        return POLARITY[true], POLARITY.get(predicted or "")

    def on_counts(self, pairs: Sequence[Pair], counts_RP: np.ndarray) -> np.ndarray:
        polar = [place for place, (label, _) in enumerate(pairs) if label in POLARITIES]
        return super().on_counts([pairs[place] for place in polar], counts_RP[:, polar])


class MeanWeightedAccuracy(CountMetric):
    """Mean of 0.5 (TP / P + TN / N) over the classes that are a truth: EMO.

    Where all rows are of one class there are no negatives, and TN / N is taken as 0.

    Source: paper section 3.3 and appendix A.5; released training/sft/evaluate/helper_emo.py.

    >>> mean_weighted_accuracy(["anger", "anger", "sad", "sad"], ["anger", None, "sad", "sad"])  # anger 0.75, sad 1
    0.875
    """

    def on_counts(self, pairs: Sequence[Pair], counts_RP: np.ndarray) -> np.ndarray:
        hits_RK, true_RK, guessed_RK = _tally(pairs, counts_RP, _classes(pairs))
        negatives_RK = true_RK.sum(1, keepdims=True) - true_RK
        specificity_RK = (negatives_RK - (guessed_RK - hits_RK)) / np.maximum(negatives_RK, 1)
        accuracy_RK = 0.5 * (hits_RK / np.maximum(true_RK, 1) + specificity_RK)
        is_present_RK = true_RK > 0
        return _share((accuracy_RK * is_present_RK).sum(1), is_present_RK.sum(1))


class ExactMatch(CountMetric):
    """Share of open answers that equal their reference, case and outer white space aside.

    This is not the paper's measure of SOC, INT and NVC: there a language model judges whether an
    answer means the same, so the two numbers must not be compared. A wrong wording is a miss here.

    Source: the text comparison of the released training/rl/reward_function.py.

    >>> exact_match(["To apologise", "a wall"], [" to apologise ", "He touches a wall"])
    0.5
    """

    def pair(self, true: str, predicted: str | None) -> Pair:
        return "hit", "hit" if predicted is not None and plain_text(true) == plain_text(predicted) else None

    def on_counts(self, pairs: Sequence[Pair], counts_RP: np.ndarray) -> np.ndarray:
        return _share(counts_RP @ np.array([float(label == guess) for label, guess in pairs]), counts_RP.sum(1))


class JudgeAccuracy(ExactMatch):
    """Share of open answers that the judge calls TRUE: SOC, INT, NVC. One without a readable verdict is not TRUE.

    The truths are reference answers, of which only the number matters, since the judge has read them;
    predictions are "TRUE", "FALSE" or None.

    Source: paper section 3.3 and appendix A.5.

    >>> judge_accuracy(["a wall", "a door"], ["TRUE", None])
    0.5
    """

    def pair(self, true: str, predicted: str | None) -> Pair:
        return "hit", "hit" if predicted == "TRUE" else None


weighted_f1 = WeightedF1()
binary_weighted_f1 = BinaryWeightedF1()
mean_weighted_accuracy = MeanWeightedAccuracy()
exact_match = ExactMatch()
judge_accuracy = JudgeAccuracy()

METRICS: dict[str, CountMetric] = {
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


def per_class(true: Sequence[str], predicted: Guesses, labels: Sequence[str]) -> list[ClassScore]:
    """Precision, recall, F1 and support of each of `labels`, in their order.

    >>> per_class(["sad", "sad"], ["sad", "fear"], ["sad", "calm"])[0]
    ClassScore(label='sad', precision=1.0, recall=0.5, f1=0.6666666666666666, support=2)

    Raises:
        DataError: the two differ in length, or a true label is none of `labels`.
    """
    _check(true, predicted, labels)
    counts = Counter(zip(true, predicted, strict=True))
    tally = _tally(list(counts), np.array([list(counts.values())], dtype=float), labels)
    columns = (column_RK[0].tolist() for column_RK in (*tally, tally.f1_RK))
    return [
        ClassScore(label, hits / guessed if guessed else None, hits / rows if rows else None, f1 if rows else None, int(rows))
        for label, hits, rows, guessed, f1 in zip(labels, *columns, strict=True)
    ]


def confusion(true: Sequence[str], predicted: Guesses, labels: Sequence[str]) -> np.ndarray:
    """Rows by truth and prediction.

    >>> confusion(["sad", "sad", "fear"], ["sad", None, "sad"], ["fear", "sad"]).tolist()
    [[0, 1, 0], [0, 1, 1]]

    Returns:
        [K, L] integers: truth by prediction; the last column holds predictions that are none of `labels`.

    Raises:
        DataError: the two differ in length, or a true label is none of `labels`.
    """
    from sklearn.metrics import confusion_matrix

    _check(true, predicted, labels)
    size = len(labels)
    if not true:
        return np.zeros((size, size + 1), dtype=np.int64)
    # codes, since numpy's text arrays cut trailing NULs and hold no None
    code: dict[str | None, int] = {label: index for index, label in enumerate(labels)}
    codes = [code[label] for label in true], [code.get(guess, _OTHER) for guess in predicted]
    return confusion_matrix(*codes, labels=[*range(size), _OTHER])[:size]


_SEVEN = {label: label for label in TASKS["SEN"].labels}
Merging = Literal["with_highly", "with_weakly"]
FIVE: dict[Merging, dict[str, str]] = {
    "with_highly": _SEVEN | {"negative": "highly negative", "positive": "highly positive"},
    "with_weakly": _SEVEN | {"negative": "weakly negative", "positive": "weakly positive"},
}
"""Rule -> label of any scale -> its class of five, which are the classes of CH-SIMS v2. `with_highly` joins `negative` to `highly
negative`, as is usual for CMU-MOSEI; `with_weakly` joins it to `weakly negative`, as the released helper_senti.py does. The paper
names no rule."""


def scales(merging: Merging = "with_highly") -> dict[int, dict[str, str]]:
    """Classes of a sentiment scale -> label of any scale -> its class there."""
    return {7: _SEVEN, 5: FIVE[merging], 3: POLARITY}


@dataclass(frozen=True)
class ScaleScore:
    """Scores on one sentiment scale, 0..1; None where no row counts.

    Attributes:
        classes: of the scale.
        rows: rows that count.
    """

    classes: int
    rows: int
    accuracy: float | None
    weighted_f1: float | None


def sentiment_scales(true: Sequence[str], predicted: Guesses, labels: Sequence[str], merging: Merging = "with_highly") -> list[ScaleScore]:
    """Sentiment on coarser and coarser scales: seven, five, three and two classes (paper appendix D.11, Table 19).

    A scale is used where the dataset has at least that many classes, since classes can be merged and not split. Two
    classes are negative and positive, rows whose truth is neutral left out. A prediction that is no sentiment is a miss
    on every scale.

    >>> scores = sentiment_scales(["negative", "positive"], ["positive", "positive"], ["negative", "neutral", "positive"])
    >>> [(score.classes, score.accuracy) for score in scores]
    [(3, 0.5), (2, 0.5)]

    Args:
        labels: all classes of the dataset.
        merging: rule of the five classes; see `FIVE`.

    Raises:
        DataError: the lists differ in length, or a true label is no sentiment.
    """
    two = binary_weighted_f1(true, predicted)  # checks the lists
    scored = []
    for classes, merged in scales(merging).items():
        if classes <= len(labels):
            ours, theirs = [merged[label] for label in true], [merged.get(guess or "") for guess in predicted]
            scored.append(ScaleScore(classes, len(ours), exact_match(ours, theirs), weighted_f1(ours, theirs)))
    polar = [(POLARITY[label], POLARITY.get(guess or "")) for label, guess in zip(true, predicted, strict=True)]
    polar = [(label, guess) for label, guess in polar if label in POLARITIES]
    accuracy = exact_match([label for label, _ in polar], [guess for _, guess in polar])
    return [*scored, ScaleScore(2, len(polar), accuracy, two)]


class _Tally(NamedTuple):
    """Rows of each class, [R, K]: those that are hit, those whose truth it is, those that are predicted to be of it."""

    hits_RK: np.ndarray
    true_RK: np.ndarray
    guessed_RK: np.ndarray

    @property
    def f1_RK(self) -> np.ndarray:
        """2 TP / (P + predicted positives), which is the harmonic mean of precision and recall; 0 where it is 0 / 0."""
        return 2 * self.hits_RK / np.maximum(self.true_RK + self.guessed_RK, 1)


def _tally(pairs: Iterable[Pair], counts_RP: np.ndarray, labels: Sequence[str]) -> _Tally:
    hits_RK, true_RK, guessed_RK = (np.zeros((len(counts_RP), len(labels))) for _ in range(3))
    place = {label: index for index, label in enumerate(labels)}
    for (label, guess), counts_R in zip(pairs, counts_RP.T, strict=True):
        true_RK[:, place[label]] += counts_R
        if guess in place:
            guessed_RK[:, place[guess]] += counts_R
            hits_RK[:, place[guess]] += counts_R * (guess == label)
    return _Tally(hits_RK, true_RK, guessed_RK)


def _classes(pairs: Iterable[Pair]) -> list[str]:
    return sorted({label for label, _ in pairs})


def _share(part_R: np.ndarray, whole_R: np.ndarray) -> np.ndarray:
    return np.where(whole_R > 0, part_R / np.maximum(whole_R, 1), np.nan)


def _check(true: Sequence[str], predicted: Guesses, labels: Sequence[str]) -> None:
    _check_lengths(true, predicted)
    stray = sorted(set(true) - set(labels))
    if stray:
        raise _unknown(stray[0], labels)


def _check_lengths(true: Sequence[str], predicted: Guesses) -> None:
    if len(true) != len(predicted):
        raise DataError(
            "metrics", f"{len(true)} true labels but {len(predicted)} predictions", "give one prediction a row", reason="lengths differ"
        )


def _unknown(label: str, labels: Sequence[str]) -> DataError:
    return DataError("metrics", f"'{label}' is none of the classes ({', '.join(labels)})", reason="unknown label")
