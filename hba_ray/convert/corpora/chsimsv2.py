"""Converter of CH-SIMS v2: the sentiment of Chinese speakers in films and shows, in the official splits.

Expected in the folder, as published: `meta.csv` (or `label.csv`; UTF-8), or the feature file `ch-simsv2s.pkl`; and, for rows with
media, the clips `Raw/<video_id>/<clip_id>.mp4`. A clip is both the row's video and its audio. Without `Raw` rows are text-only.
Transcripts stay Chinese inside an English question.
"""

from __future__ import annotations

from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row, left_out
from hba_ray.convert.discretise import chsims_sentiment
from hba_ray.convert.media import first_folder, video_and_audio
from hba_ray.convert.mmsa import Utterance, read_utterances
from hba_ray.convert.splits import tell_crossings
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.specs.sections.atlas import OnBadRow

TABLES = ("meta.csv", "metas.csv", "label.csv")
FEATURES = ("ch-simsv2s.pkl", "simsv2.pkl")
CLIP_FOLDERS = ("Raw", "ch-simsv2s/Raw", "raw")
LONGEST_NAMES = (4, 5)
"""Digits to which names of clips are filled up with zeros, where the name as written has no clip."""
RULES = [
    "Five classes by the bins of MMSA's Acc-5, whose upper ends belong to the lower class: -0.7, -0.1, 0.1, 0.7; that the paper used "
    "these is not known.",
    "The official split; the column annotation is not read.",
]


def convert(request: ConversionRequest) -> Converted:
    """The rows of CH-SIMS v2; see `read_chsims`."""
    return read_chsims(request.folder, on_bad_row=request.spec.on_bad_row, prompts=request.prompts)


def read_chsims(folder: Path, *, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None) -> Converted:
    """The rows of CH-SIMS v2.

    Raises:
        DataError: names file, line and reason.
    """
    clips = first_folder(folder, CLIP_FOLDERS)
    sieve = Sieve("chsimsv2", on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    videos: dict[str, list[str]] = {split: [] for split in SPLITS}
    for said in read_utterances(folder, TABLES, FEATURES, sieve):
        with sieve.row(said.split):
            rows[said.split].append(_row(said, clips, prompts))
            videos[said.split].append(said.video)
    return Converted(rows, sieve.drops, left_out(sieve.drops, SPLITS), RULES, tell_crossings(videos, "videos"))


def _row(said: Utterance, clips: Path | None, prompts: DatasetPrompts | None) -> Row:
    dataset = DATASETS["chsimsv2"]
    label = chsims_sentiment(said.score, where=said.where)
    media = video_and_audio(_clip(clips / said.video, said.clip), said.where) if clips else {}
    problem = question(dataset, tuple(media), said.text, where=said.where, prompts=prompts)
    own = f"chsimsv2-{said.video}-{said.clip}"
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label=label, media=media)


def _clip(folder: Path, name: str) -> Path:
    """The clip of this name, or of the same number with more zeros; as written where there is none."""
    tried = [folder / f"{name}.mp4", *(folder / f"{name.zfill(digits)}.mp4" for digits in LONGEST_NAMES)]
    return next((path for path in tried if path.is_file()), tried[0])
