"""Converter of MELD: each utterance gives a row of two tasks, sentiment and emotion, in the official splits.

Expected in the folder, as published: `train_sent_emo.csv`, `dev_sent_emo.csv`, `test_sent_emo.csv`
(UTF-8); and, for rows with media, the clips `train_splits/dia0_utt0.mp4`,
`dev_splits_complete/...` and `output_repeated_splits_test/...`, directly or in `train`, `dev` and
`test`. A clip is both the row's video and its audio. Without any of these folders rows are text-only.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, Difference, Sieve, labelled_row
from hba_ray.convert.media import first_folder, video_and_audio
from hba_ray.convert.tables import column, read_table
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLIT_SURPRISE, Dataset, consolidate
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow

FILES = {"train": "train_sent_emo.csv", "validation": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
CLIP_FOLDERS = {
    "train": ("train_splits", "train/train_splits"),
    "validation": ("dev_splits_complete", "dev/dev_splits_complete"),
    "test": ("output_repeated_splits_test", "test/output_repeated_splits_test"),
}
LABEL_COLUMNS = {"meld_senti": "Sentiment", "meld_emotion": "Emotion"}
"""Dataset -> the column of its label."""
BROKEN_CLIPS = {"train": "dia125_utt3", "validation": "dia110_utt7"}
"""Utterances whose published clip cannot be decoded; Table 7 does not count them."""
BROKEN = "known broken clip"


def convert(request: ConversionRequest) -> Converted:
    """The rows of the datasets that are wanted; see `read_meld`."""
    spec = request.spec
    return read_meld(
        request.folder,
        datasets=request.datasets,
        split_surprise=spec.split_surprise,
        on_bad_row=spec.on_bad_row,
        prompts=request.prompts,
    )


def read_meld(
    folder: Path,
    *,
    datasets: Collection[str] = tuple(LABEL_COLUMNS),
    split_surprise: bool = False,
    leave_out_broken: bool | None = None,
    on_bad_row: OnBadRow = "fail",
    prompts: DatasetPrompts | None = None,
) -> Converted:
    """The rows of MELD, utterance by utterance, one for each of `datasets`.

    Args:
        split_surprise: an utterance's sentiment tells positive from negative surprise.
        leave_out_broken: leave out the two known broken clips; by default exactly where clips are attached.
        on_bad_row: `drop` leaves an utterance with a defect out of both tasks.

    Raises:
        DataError: names file, line and reason.
    """
    clips = _clip_folders(folder)
    without_broken = clips is not None if leave_out_broken is None else leave_out_broken
    chosen = [DATASETS[name] for name in LABEL_COLUMNS if name in datasets]
    sieve = Sieve("meld", on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in FILES}
    differences: dict[str, list[Difference]] = {split: [] for split in FILES}
    for split, file in FILES.items():
        seen: set[str] = set()
        for where, record in read_table(folder / file, ("Utterance", "Dialogue_ID", "Utterance_ID", *LABEL_COLUMNS.values())):
            with sieve.row(split):
                name = _name(record, where, seen)
                if name == BROKEN_CLIPS.get(split):
                    if without_broken:
                        sieve.leave_out(where, BROKEN, split)
                        continue
                    differences[split].append(Difference(1, f"{name}, whose clip is broken, is not counted there"))
                media = video_and_audio(clips[split] / f"{name}.mp4", where) if clips else {}
                rows[split] += [_row(record, dataset, split, name, media, where, split_surprise, prompts) for dataset in chosen]
        bad = [drop for drop in sieve.drops if drop.split == split and drop.reason != BROKEN]
        differences[split] += [Difference(-1, f"left out: {drop.reason}") for drop in bad]
    return Converted(rows, sieve.drops, differences)


def _clip_folders(folder: Path) -> dict[str, Path] | None:
    """Split -> folder of its clips; None where no split has one."""
    found = {split: first_folder(folder, names) for split, names in CLIP_FOLDERS.items()}
    if not any(found.values()):
        return None
    for split, path in found.items():
        if path is None:
            what = f"has clips, but none of the {split} split ({CLIP_FOLDERS[split][0]})"
            raise DataError(str(folder), what, "unpack all three splits, or none for text-only rows", reason="missing file")
    return {split: path for split, path in found.items() if path}


def _name(record: dict[str, str], where: str, seen: set[str]) -> str:
    """The utterance's name as its clip has it: dia0_utt0."""
    numbers = []
    for key in ("Dialogue_ID", "Utterance_ID"):
        value = column(record, key, where)
        if not (value.isascii() and value.isdecimal()):
            raise DataError(where, f"'{key}' is '{value}', not a number", reason="wrong type")
        numbers.append(int(value))
    name = f"dia{numbers[0]}_utt{numbers[1]}"
    if name in seen:
        raise DataError(where, f"{name} occurs twice", reason="duplicate row")
    seen.add(name)
    return name


def _row(
    record: dict[str, str],
    dataset: Dataset,
    split: str,
    name: str,
    media: dict[str, tuple[Path, ...]],
    where: str,
    split_surprise: bool,
    prompts: DatasetPrompts | None,
) -> Row:
    stated = column(record, LABEL_COLUMNS[dataset.id], where)
    label = consolidate(stated, dataset, where=where)
    labels = dataset.labels
    if split_surprise and "surprise" in dataset.labels:
        labels = (*(other for other in dataset.labels if other != "surprise"), *SPLIT_SURPRISE)
        if label == "surprise":
            label = _side(column(record, "Sentiment", where), dataset, where)
    problem = question(dataset, tuple(media), column(record, "Utterance", where), labels=labels, where=where, prompts=prompts)
    return labelled_row(
        dataset, sample_id=f"{dataset.id}-{split}-{name}", clip_id=f"meld-{split}-{name}", problem=problem, label=label, media=media
    )


def _side(sentiment: str, dataset: Dataset, where: str) -> str:
    """Positive or negative surprise, by the sentiment of the same utterance."""
    return consolidate(f"{sentiment} surprise", dataset, where=where, split_surprise=True)
