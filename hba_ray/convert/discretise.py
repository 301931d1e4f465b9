"""From the scores of annotators and questionnaires to classes, as tables (paper section 3.2 and appendix A.4).

A table is a list of rungs in rising order: a score belongs to the first rung that does not end below it. Scores that stand in
files as decimal text are compared as decimals, since -0.7 is no sum of binary fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Literal

from hba_ray.errors import DataError

SevenClasses = Literal["cmu", "round"]
"""`cmu`: CMU's own rule, away from zero (convert_label.py of s3prl). `round`: to the nearest whole number, half to even, as Acc-7 of
MMSA (metricsTop.py)."""


@dataclass(frozen=True)
class Rung:
    """A class and the highest score that it takes.

    Attributes:
        inclusive: whether `end` itself belongs to it.
    """

    end: Decimal
    label: str
    inclusive: bool = True


SEVEN = ("highly negative", "negative", "weakly negative", "neutral", "weakly positive", "positive", "highly positive")
"""Names of -3, -2 .. 3 (README.md of s3prl's downstream task)."""

MOSEI_CMU = (
    Rung(Decimal(-2), "highly negative", inclusive=False),
    Rung(Decimal(-1), "negative", inclusive=False),
    Rung(Decimal(0), "weakly negative", inclusive=False),
    Rung(Decimal(0), "neutral"),
    Rung(Decimal(1), "weakly positive"),
    Rung(Decimal(2), "positive"),
    Rung(Decimal(3), "highly positive"),
)
"""Sentiment of CMU-MOSEI, -3 to 3, by CMU's rule: [-3, -2) [-2, -1) [-1, 0) 0 (0, 1] (1, 2] (2, 3]."""

CHSIMS = (
    Rung(Decimal("-0.7"), "highly negative"),
    Rung(Decimal("-0.1"), "weakly negative"),
    Rung(Decimal("0.1"), "neutral"),
    Rung(Decimal("0.7"), "weakly positive"),
    Rung(Decimal("1"), "highly positive"),
)
"""Sentiment of CH-SIMS v2, -1 to 1: [-1, -0.7] (-0.7, -0.1] (-0.1, 0.1] (0.1, 0.7] (0.7, 1] (metricsTop.py of MMSA)."""

PRESENT_FROM = {"PHQ-8": 10, "PHQ-9": 10, "GAD-7": 10}
"""Questionnaire -> the score from which the disorder counts as present."""
HIGHEST_SCORE = {"PHQ-8": 24, "PHQ-9": 27, "GAD-7": 21}
"""Questionnaire -> the highest score that it gives."""

MOSEI_EMOTIONS = ("happy", "sad", "anger", "surprise", "disgust", "fear")
"""Emotions of CMU-MOSEI in the order of its columns, which is also that of ties."""
MOSEI_EMOTION_FROM = 1.0
"""The intensity, 0 to 3, from which the strongest emotion is a clip's label."""

IEMOCAP_FOUR = {"ang": "anger", "hap": "happy", "exc": "happy", "sad": "sad", "neu": "neutral"}
"""Code in IEMOCAP's evaluation -> label, in the four-class form that most work uses: excitement counts as happiness."""
IEMOCAP_ALL = {**IEMOCAP_FOUR, "dis": "disgust", "fea": "fear", "sur": "surprise"}
"""The same for all classes of the benchmark; frustration and others (fru, xxx, oth) have none."""


def mosei_sentiment(score: str | float, rule: SevenClasses = "cmu", *, where: str = "sentiment") -> str:
    """One of the seven classes.

    >>> mosei_sentiment("-0.3333333"), mosei_sentiment("-0.3333333", "round"), mosei_sentiment("2.5", "round")
    ('weakly negative', 'neutral', 'positive')

    Raises:
        DataError: the score is no number from -3 to 3.
    """
    value = _decimal(score, Decimal(-3), Decimal(3), where)
    if rule == "cmu":
        return _rung(value, MOSEI_CMU)
    return SEVEN[int(value.quantize(Decimal(1), ROUND_HALF_EVEN)) + 3]


def chsims_sentiment(score: str, *, where: str = "sentiment") -> str:
    """One of five classes.

    >>> chsims_sentiment("-0.7"), chsims_sentiment("-0.6"), chsims_sentiment("0.1")
    ('highly negative', 'weakly negative', 'neutral')

    Raises:
        DataError: the score is no number from -1 to 1.
    """
    return _rung(_decimal(score, Decimal(-1), Decimal(1), where), CHSIMS)


def mosei_emotion(intensity: Mapping[str, float], least: float = MOSEI_EMOTION_FROM) -> str | None:
    """The strongest emotion, the first of MOSEI_EMOTIONS where several are; None where it is weaker than `least`.

    >>> mosei_emotion({"happy": 1.0, "sad": 1.0, "fear": 0.6667}), mosei_emotion({"happy": 0.6667})
    ('happy', None)
    """
    strongest = max(MOSEI_EMOTIONS, key=lambda name: intensity.get(name, 0.0))
    return strongest if intensity.get(strongest, 0.0) >= least else None


def is_present(questionnaire: str, score: float) -> bool:
    """Whether a questionnaire's score means that the disorder is present.

    >>> is_present("PHQ-8", 9), is_present("PHQ-8", 10)
    (False, True)
    """
    return score >= PRESENT_FROM[questionnaire]


def _rung(value: Decimal, ladder: Sequence[Rung]) -> str:
    return next(rung.label for rung in ladder if value < rung.end or (rung.inclusive and value == rung.end))


def _decimal(score: str | float, lowest: Decimal, highest: Decimal, where: str) -> Decimal:
    """A score as a decimal.

    Raises:
        DataError: it is no number in this range.
    """
    try:
        value = Decimal(score if isinstance(score, str) else repr(float(score)))
    except (InvalidOperation, ValueError):
        value = Decimal("NaN")
    if not value.is_finite():
        raise DataError(where, "is no number", "use the file as published", reason="wrong type")
    if not lowest <= value <= highest:
        raise DataError(where, f"is {value}, outside {lowest} to {highest}", "use the file as published", reason="out of range")
    return value
