"""Converter of TESS: two actresses say 200 words in seven emotions. All but the sound is in the file names.

Expected in the folder, as published: `OAF_back_angry.wav`, at any depth; the usual re-upload has 14 folders and the whole tree
twice. The split is ours, by word: with only two speakers, each of them is heard in all splits.
"""

from __future__ import annotations

import re
from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row
from hba_ray.convert.media import files_below
from hba_ray.convert.splits import share_out, split_rows
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLIT_SURPRISE
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow

EMOTIONS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happy",
    "neutral": "neutral",
    "ps": "surprise",
    "sad": "sad",
}
"""Code in the file name -> label; `ps` is pleasant surprise."""
SPEAKERS = {"OAF": "OAF", "YAF": "YAF", "OA": "OAF"}
"""Speaker in the file name -> speaker; one published name, OA_bite_neutral, lacks a letter."""

_NAME = re.compile(r"([A-Z]+)_([a-z]+)_([a-z]+)")


def convert(request: ConversionRequest) -> Converted:
    """The rows of TESS; see `read_tess`."""
    spec = request.spec
    by_clip = spec.split_by == "clip"
    return read_tess(
        request.folder,
        seed=request.seed,
        by_clip=by_clip,
        split_surprise=spec.split_surprise,
        on_bad_row=spec.on_bad_row,
        prompts=request.prompts,
    )


def read_tess(
    folder: Path,
    *,
    seed: int = 0,
    by_clip: bool = False,
    split_surprise: bool = False,
    on_bad_row: OnBadRow = "fail",
    prompts: DatasetPrompts | None = None,
) -> Converted:
    """The rows of TESS in a seeded split of Table 7's sizes.

    Args:
        by_clip: split by clip instead of by word.
        split_surprise: the label is positive surprise.

    Raises:
        DataError: there is no clip, or names the one that is bad.
    """
    sieve = Sieve("tess", on_bad_row)
    rows: dict[str, Row] = {}
    words: list[str] = []
    for path in files_below(folder, (".wav",)):
        with sieve.row():
            speaker, word, code = _parts(path)
            name = f"{speaker}_{word}_{code}"
            if name not in rows:  # the usual re-upload has every file twice
                rows[name] = _row(path, name, word, code, split_surprise, prompts)
                words.append(word)
    if not rows and not sieve.drops:
        raise DataError(str(folder), "holds no .wav file", "give the folder of the unpacked files as atlas.root", reason="no rows")
    groups = list(rows) if by_clip else words
    split = split_rows(list(rows.values()), groups, share_out(DATASETS["tess"], len(rows)), seed, where=str(folder))
    rule = "clip, so a word is in several splits" if by_clip else "word; a word's 14 clips stay in one split"
    return Converted(split, sieve.drops, rules=[f"No official split; ours is by {rule}. Both speakers are heard in all splits."])


def _parts(path: Path) -> tuple[str, str, str]:
    """Speaker, word and code of the emotion, by the file's name; folders are spelled in many ways."""
    found = _NAME.fullmatch(path.stem)
    if not found or found[1] not in SPEAKERS:
        raise DataError(str(path), "is not SPEAKER_WORD_EMOTION.wav", "OAF_back_angry.wav is an example", reason="bad name")
    if found[3] not in EMOTIONS:
        raise DataError(str(path), f"'{found[3]}' is none of {', '.join(EMOTIONS)}", reason="unknown label")
    return SPEAKERS[found[1]], found[2], found[3]


def _row(path: Path, name: str, word: str, code: str, split_surprise: bool, prompts: DatasetPrompts | None) -> Row:
    dataset, label, labels = DATASETS["tess"], EMOTIONS[code], None
    if split_surprise:
        labels = (*(other for other in dataset.labels if other != "surprise"), *SPLIT_SURPRISE)
        label = SPLIT_SURPRISE[0] if label == "surprise" else label
    problem = question(dataset, ("audio",), f"Say the word {word}.", labels=labels, where=str(path), prompts=prompts)
    own = f"tess-{name}"
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label=label, media={"audio": (path.absolute(),)})
