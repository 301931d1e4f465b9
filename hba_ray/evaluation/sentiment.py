"""Sentiment on coarser and coarser scales: seven, five, three and two classes (paper appendix D.11, Table 19).

A scale is used where the dataset has at least that many classes: classes can be merged, not split.
Five classes are the seven with `negative` joined to `highly negative`, and so on the other side, as
is usual for CMU-MOSEI; CH-SIMS v2 has just these. Two are positive and negative, neutral rows left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hba_ray.data.tasks import TASKS
from hba_ray.evaluation.metrics import POLARITIES, POLARITY, Predictions, binary_weighted_f1, exact_match, weighted_f1

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
