"""Converter of CREMA-D: twelve sentences acted in six emotions by 91 actors. All but the sound is in the file names.

Expected in the folder, as published: `SentenceFilenames.csv`; and, for rows with sound,
`AudioWAV/1001_IEO_NEU_XX.wav`. Without this folder rows are text-only, and a text does not tell in
which emotion it was acted. `1076_MTI_SAD_XX` is silent, as its publishers say; Table 7 counts it.
"""

from __future__ import annotations

from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, Difference, Sieve, labelled_row
from hba_ray.convert.media import clip_file, first_folder
from hba_ray.convert.splits import share_out, split_rows
from hba_ray.convert.tables import column, read_table
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow

FILE = "SentenceFilenames.csv"
CLIP_FOLDERS = ("AudioWAV",)
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
"""Code in the file name -> the sentence spoken."""
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
RENAMED = {"1040_ITH_SAD_XX": "1040_ITH_SAD_X"}
"""Listed name -> the name under which older downloads hold the clip."""


def convert(request: ConversionRequest) -> Converted:
    """The rows of CREMA-D; see `read_cremad`."""
    spec = request.spec
    return read_cremad(
        request.folder, seed=request.seed, by_clip=spec.split_by == "clip", on_bad_row=spec.on_bad_row, prompts=request.prompts
    )


def read_cremad(
    folder: Path, *, seed: int = 0, by_clip: bool = False, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None
) -> Converted:
    """The rows of CREMA-D in a seeded split of Table 7's sizes, as near as whole actors allow.

    Args:
        by_clip: split by clip, which meets Table 7's counts exactly but lets an actor be heard in several splits.

    Raises:
        DataError: names file, line and reason.
    """
    path = folder / FILE
    clips = first_folder(folder, CLIP_FOLDERS)
    sieve = Sieve("cremad", on_bad_row)
    rows: dict[str, Row] = {}
    for where, record in read_table(path, ("Filename",)):
        with sieve.row():
            name = column(record, "Filename", where)
            if name in rows:
                raise DataError(where, f"{name} occurs twice", reason="duplicate row")
            rows[name] = _row(name, clips, where, prompts)
    groups = list(rows) if by_clip else [actor(name) for name in rows]
    counts = share_out(DATASETS["cremad"], len(rows))
    by_split = split_rows(list(rows.values()), groups, counts, seed, where=str(path))
    shifts = {split: len(by_split[split]) - count for split, count in zip(SPLITS, counts, strict=True)}
    differences = {split: [Difference(shift, "an actor's clips stay in one split")] for split, shift in shifts.items() if shift}
    rule = "clip, so an actor is heard in several splits" if by_clip else "actor"
    return Converted(by_split, sieve.drops, differences, [f"No official split; ours is by {rule}."])


def actor(name: str) -> str:
    """The actor of a clip: the number its name starts with."""
    return name.split("_")[0]


def _row(name: str, clips: Path | None, where: str, prompts: DatasetPrompts | None) -> Row:
    parts = name.split("_")
    if len(parts) != 4 or len(parts[0]) != 4 or not (parts[0].isascii() and parts[0].isdecimal()):
        raise DataError(where, f"'{name}' is not ACTOR_SENTENCE_EMOTION_LEVEL", "1001_IEO_NEU_XX is an example", reason="bad name")
    _, sentence, emotion, level = parts
    for code, known, reason in ((sentence, SENTENCES, "unknown sentence"), (emotion, EMOTIONS, "unknown label")):
        if code not in known:
            raise DataError(where, f"'{name}': '{code}' is none of {', '.join(known)}", reason=reason)
    if level not in ("XX", "LO", "MD", "HI"):
        raise DataError(where, f"'{name}': '{level}' is none of XX, LO, MD, HI", reason="bad name")
    dataset = DATASETS["cremad"]
    media = {"audio": (_clip(clips, name, where),)} if clips else {}
    problem = question(dataset, tuple(media), SENTENCES[sentence], where=where, prompts=prompts)
    own = f"cremad-{name}"
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label=EMOTIONS[emotion], media=media)


def _clip(clips: Path, name: str, where: str) -> Path:
    older = clips / f"{RENAMED.get(name, name)}.wav"
    return older.absolute() if name in RENAMED and older.is_file() else clip_file(clips / f"{name}.wav", where)
