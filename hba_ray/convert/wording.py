"""The wording of prompts: marks for the clips, the transcript, what is shown above, a question, and the label set (paper
Tables 3 and 22)."""

from __future__ import annotations

from collections.abc import Sequence

from hba_ray.data.rows import MEDIA_COLUMNS, TAG
from hba_ray.data.tasks import Dataset
from hba_ray.errors import DataError

QUESTIONS: dict[str, str] = {
    "SEN": "Which sentiment does the speaker convey?",
    "EMO": "Which emotion does the speaker convey?",
    "PTSD": "Does the speaker appear to live with post-traumatic stress disorder?",
    "DEP": "Does the speaker appear to live with depression?",
    "ANX": "Does the speaker appear to live with anxiety?",
    "SAR": "Is the speaker being sarcastic?",
    "HUM": "Is the speaker being humorous?",
}
"""Task -> its question. Open tasks are left out, since each of their rows has a question of its own."""

_NOUNS = {"image": "an image", "video": "a video", "audio": "a sound recording"}


def question(
    dataset: Dataset,
    modalities: Sequence[str],
    transcript: str | None,
    context: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    where: str | None = None,
) -> str:
    """The prompt of a row with one clip per modality.

    Args:
        modalities: the clips that the row has, of image, video and audio; text is ignored here.
        transcript: what is said in the clip; None where there is no transcript.
        context: what was said before it, one turn a line.
        labels: the label set to offer; the dataset's own by default.
        where: names the row in errors; the dataset by default.

    Raises:
        DataError: an open task; nothing to show; an empty text; a text that holds a mark of a clip.
    """
    where = where or dataset.id
    if dataset.task.is_open:
        raise DataError(where, f"{dataset.task.name} has no question of its own", "each row of an open task brings one", reason="open task")
    texts = [text for text in (context, transcript) if text is not None]
    for text in texts:
        _check(text, where)
    clips = [name for name in MEDIA_COLUMNS if name in modalities]
    if not clips and transcript is None:
        raise DataError(where, "has neither a clip nor a transcript", reason="nothing to show")
    shown = [_NOUNS[name] for name in clips] + (["a transcript"] if texts else [])
    last = " Judge the last line only; the lines before it were said earlier." if context else ""
    asked = f"{QUESTIONS[dataset.task.id]} Reply with one of these labels: {', '.join(labels or dataset.labels)}."
    return "\n".join([*(f"<{name}>" for name in clips), *texts, f"Given above: {_listed(shown)}.{last} {asked}"])


def open_question(
    dataset: Dataset, modalities: Sequence[str], asked: str, transcript: str | None = None, *, where: str | None = None
) -> str:
    """The prompt of a row that brings its own question. Where there is nothing to show, it is the question alone.

    Args:
        modalities: as in `question`.
        asked: the row's question.

    Raises:
        DataError: a task with classes; an empty text; a text that holds a mark of a clip.
    """
    where = where or dataset.id
    if not dataset.task.is_open:
        raise DataError(where, f"{dataset.task.name} has a question of its own", reason="closed task")
    _check(asked, where, "question")
    if transcript is not None:
        _check(transcript, where)
    clips = [name for name in MEDIA_COLUMNS if name in modalities]
    shown = [_NOUNS[name] for name in clips] + (["a transcript"] if transcript is not None else [])
    given = f"Given above: {_listed(shown)}. " if shown else ""
    texts = [] if transcript is None else [transcript]
    return "\n".join([*(f"<{name}>" for name in clips), *texts, f"{given}{asked}"])


def _check(text: str, where: str, name: str = "transcript") -> None:
    if not text.strip():
        raise DataError(where, f"the {name} is empty", reason="empty text")
    if mark := TAG.search(text):
        what = f"the {name} holds {mark.group()}, which stands for a clip"
        raise DataError(where, what, "take it out of the text", reason="mark in text")


def _listed(things: Sequence[str]) -> str:
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
