"""The wording of rows of converted corpora: marks for the clips, what was said before, the transcript, then what the dataset is asked
(paper section 3.2, Table 3). The words of each dataset are in `prompts.yaml`, or in a file of the user's in that form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from pydantic import field_validator

from hba_ray.data.rows import MEDIA_COLUMNS, TAG
from hba_ray.data.tasks import DATASETS, Dataset
from hba_ray.data.text import control_token
from hba_ray.errors import DataError
from hba_ray.specs.base import Spec
from hba_ray.specs.load import load_prompt_file
from hba_ray.specs.sections.atlas import OUR_PROMPTS

BUILT_IN = {OUR_PROMPTS: "convert/prompts.yaml"}
_FIELD = re.compile(r"\{(\w+)\}")
_NOUNS = {"image": "an image", "video": "a video", "audio": "a sound recording"}
_LAST_LINE = ". Judge the last line only; the lines before it were said earlier"


class DatasetPrompts(Spec):
    """What rows are asked, by dataset."""

    prompts: dict[str, str]
    """Id of a dataset -> its prompt, with {given}, and {labels} or, in open tasks, {question}; see `prompts.yaml`."""

    @field_validator("prompts")
    @classmethod
    def _have_their_fields(cls, prompts: dict[str, str]) -> dict[str, str]:
        for name, prompt in prompts.items():
            if name not in DATASETS or DATASETS[name].is_own or DATASETS[name].is_toy:
                raise ValueError(f"'{name}' is the id of no dataset that is converted")
            found, needed = sorted(_FIELD.findall(prompt)), ["given", "question"] if DATASETS[name].task.is_open else ["given", "labels"]
            if found != needed:
                raise ValueError(f"{name} holds the fields {found or 'none'}; it needs {' and '.join(needed)}, in braces, once each")
            if sign := TAG.search(prompt):
                raise ValueError(f"{name} holds {sign.group()}, which stands for a clip")
            if token := control_token(prompt):
                raise ValueError(f"{name} holds {token}, which tokenizers take for a control token")
        return prompts

    def ask(self, dataset: Dataset, **values: str) -> str:
        """The prompt of a dataset with its fields filled in."""
        return _FIELD.sub(lambda field: values[field[1]], self.prompts[dataset.id]).strip()


def load_prompts(name: str = OUR_PROMPTS) -> DatasetPrompts:
    """Our prompts, or those of a YAML file, and ours of the datasets that it does not name.

    Raises:
        SpecError: no such file, not YAML, or a prompt is of no dataset, or lacks a field.
    """
    return _ours() if name == OUR_PROMPTS else DatasetPrompts(prompts=_ours().prompts | _read(name).prompts)


@cache
def _ours() -> DatasetPrompts:
    return _read(OUR_PROMPTS)


def _read(name: str) -> DatasetPrompts:
    return load_prompt_file(DatasetPrompts, name, key="atlas.prompts", built_in=BUILT_IN)


def question(
    dataset: Dataset,
    modalities: Sequence[str],
    transcript: str | None,
    context: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    where: str | None = None,
    prompts: DatasetPrompts | None = None,
) -> str:
    """The prompt of a row with one clip per modality.

    Args:
        modalities: the clips that the row has, of image, video and audio; text is ignored here.
        transcript: what is said in the clip; None where there is no transcript.
        context: what was said before it, one turn a line.
        labels: the label set to offer; the dataset's own by default.
        where: names the row in errors; the dataset by default.
        prompts: the words of all datasets; ours by default.

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
    given = _listed(shown) + (_LAST_LINE if context else "")
    asked = (prompts or load_prompts()).ask(dataset, given=given, labels=", ".join(labels or dataset.labels))
    return "\n".join([*(f"<{name}>" for name in clips), *texts, asked])


def open_question(
    dataset: Dataset,
    modalities: Sequence[str],
    asked: str,
    transcript: str | None = None,
    *,
    where: str | None = None,
    prompts: DatasetPrompts | None = None,
) -> str:
    """The prompt of a row that brings its own question. Where there is nothing to show, it is the question alone.

    Args:
        modalities: as in `question`.
        asked: the row's question.
        prompts: the words of all datasets; ours by default.

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
    texts = [] if transcript is None else [transcript]
    wanted = (prompts or load_prompts()).ask(dataset, given=_listed(shown), question=asked) if shown else asked
    return "\n".join([*(f"<{name}>" for name in clips), *texts, wanted])


def _check(text: str, where: str, name: str = "transcript") -> None:
    if not text.strip():
        raise DataError(where, f"the {name} is empty", reason="empty text")
    if mark := TAG.search(text):
        what = f"the {name} holds {mark.group()}, which stands for a clip"
        raise DataError(where, what, "take it out of the text", reason="mark in text")


def _listed(things: Sequence[str]) -> str:
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)
