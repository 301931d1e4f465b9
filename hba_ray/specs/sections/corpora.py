"""The `atlas.corpora` section: the rules of converters where a corpus leaves a choice. Sources and defaults stand at each field."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hba_ray.specs.base import Added, Spec

Corpus = Literal[
    "meld",
    "mustard",
    "cremad",
    "mosei",
    "tess",
    "chsimsv2",
    "siq2",
    "intentqa",
    "mimeqa",
    "urfunny",
    "daicwoz",
    "mmpsy",
    "ptsd_in_the_wild",
    "iemocap",
]
"""Values of `atlas.source` that have a converter: a module of hba_ray.convert.corpora bears each of these names."""


class MoseiSpec(Spec):
    """Rules for CMU-MOSEI."""

    seven_classes: Literal["cmu", "round"] = "cmu"
    """From a sentiment of -3 to 3 to seven classes. `cmu`: CMU's own rule, away from zero, so that only 0 is neutral; `round`: to
    the nearest whole number, as Acc-7 of MMSA. Which one the paper used is not known."""
    emotion_from: float = Field(default=1.0, ge=0, le=3)
    """A clip's emotion is the strongest of the six; clips in which it is weaker than this, of 3, give no row of `mosei_emotion`. The
    default is that of an early script of the paper's authors."""


class Siq2Spec(Spec):
    """Rules for Social-IQ 2.0."""

    validation_as: Literal["test", "validation"] = "test"
    """The split that the corpus's validation file becomes. `test` as in the paper's Table 7: the answers of its test file are not
    public."""
    transcripts: bool = True
    """Put the captions of a clip into its prompts, where there are any."""
    without_clip: Literal["leave_out", "keep"] = "leave_out"
    """What becomes of rows whose clip is not there, once there are clips: many are no longer online. `keep` asks without a clip."""


class MimeqaSpec(Spec):
    """Rules for MimeQA."""

    timestamps: bool = True
    """Name the seconds that a question is about in front of it, as the publishers' evaluation does."""


class UrfunnySpec(Spec):
    """Rules for UR-FUNNY v2."""

    keep: str | None = None
    """A text file of the ids to keep, one a line; null keeps all rows of the folds. The paper used 2,125 of 10,166, by a rule that is
    not known."""
    context: bool = True
    """Show the sentences before the punchline."""


class DaicwozSpec(Spec):
    """Rules for DAIC-WOZ."""

    label: Literal["score", "binary"] = "score"
    """`score`: depression from a PHQ-8 score of 10; `binary`: as the column PHQ8_Binary says. They differ in session 409."""
    participant_only: bool = False
    """Leave the interviewer's lines out of transcripts: which ones she says tells the label."""


class IemocapSpec(Spec):
    """Rules for IEMOCAP. Those of the paper's Table 9 are not known."""

    classes: Literal["four", "all"] = "four"
    """`four`: anger, happy, neutral, sad; `all`: with disgust, fear and surprise. Utterances of other classes give no row."""
    excited: Literal["happy", "leave_out"] = "happy"
    """What becomes of excited utterances."""
    video: bool = False
    """Cut each utterance's video out of its dialog's. It shows both actors."""
    validation_session: int = Field(default=4, ge=1, le=5)
    """The session that validates; each has two speakers of its own."""
    test_session: int = Field(default=5, ge=1, le=5)
    """The session that tests."""

    @model_validator(mode="after")
    def _two_sessions(self) -> IemocapSpec:
        if self.validation_session == self.test_session:
            raise ValueError(f"validation_session and test_session are both {self.test_session}; give two sessions")
        return self


class CorporaSpec(Spec):
    """Rules of the converters that leave a choice."""

    mosei: Annotated[MoseiSpec, Added(before=MoseiSpec())] = MoseiSpec()
    siq2: Annotated[Siq2Spec, Added(before=Siq2Spec())] = Siq2Spec()
    mimeqa: Annotated[MimeqaSpec, Added(before=MimeqaSpec())] = MimeqaSpec()
    urfunny: Annotated[UrfunnySpec, Added(before=UrfunnySpec())] = UrfunnySpec()
    daicwoz: Annotated[DaicwozSpec, Added(before=DaicwozSpec())] = DaicwozSpec()
    iemocap: Annotated[IemocapSpec, Added(before=IemocapSpec())] = IemocapSpec()
