"""Converter of PTSD-in-the-Wild: videos of people who live with PTSD, and of others; the folder tells the split and the label.

Expected in the folder, as its publishers give it: `<split>/<PTSD or No PTSD>/.../title.mp4`, directly or in
`PTSD_Project_train_validation_test_split`; under PTSD there is one more folder for the cause. Also without folders of splits; the
split is then ours, by title. A clip is both the row's video and its audio. No transcript is published.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row, left_out
from hba_ray.convert.media import files_below, video_and_audio
from hba_ray.convert.splits import SPLIT_NAMES, share_out, split_rows
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow
from hba_ray.store.files import file_digest

FOLDERS = ("PTSD_Project_train_validation_test_split",)
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
LABELS = {
    "no ptsd": "no ptsd",
    "non ptsd": "no ptsd",
    "without ptsd": "no ptsd",
    "normal": "no ptsd",
    "ptsd": "ptsd",
    "with ptsd": "ptsd",
}
"""Name of a folder, in small letters and with spaces, -> label. Whole names are compared, since one holds the other."""

_PART = re.compile(r"[\W_]*(?:part|pt|episode|ep|no)?[\W_]*\d+[\W_]*$", re.IGNORECASE)


def convert(request: ConversionRequest) -> Converted:
    """The rows of PTSD-in-the-Wild; see `read_ptsd`."""
    spec = request.spec
    return read_ptsd(
        request.folder, seed=request.seed, by_clip=spec.split_by == "clip", on_bad_row=spec.on_bad_row, prompts=request.prompts
    )


def read_ptsd(
    folder: Path, *, seed: int = 0, by_clip: bool = False, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None
) -> Converted:
    """The rows of PTSD-in-the-Wild.

    Args:
        by_clip: where there are no folders of splits, split by clip instead of by title.

    Raises:
        DataError: names the file and the reason.
    """
    base = next((folder / name for name in FOLDERS if (folder / name).is_dir()), folder)
    split_of = {path.name: SPLIT_NAMES[path.name.strip().lower()] for path in _folders(base) if path.name.strip().lower() in SPLIT_NAMES}
    sieve = Sieve("ptsd_in_the_wild", on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for split, place in [(split, base / name) for name, split in sorted(split_of.items())] or [("", base)]:
        kept = rows.setdefault(split, [])
        for path in files_below(place, SUFFIXES):
            with sieve.row(split):
                kept.append(_row(path, place, split, len(kept) + 1, prompts))
    if not any(rows.values()) and not sieve.drops:
        what = f"holds no video ({', '.join(SUFFIXES)})"
        raise DataError(str(folder), what, "give the folder of the splits as atlas.root", reason="no rows")
    if split_of:
        return Converted(rows, sieve.drops, left_out(sieve.drops, SPLITS), ["The split of the folders."], _twins(rows))
    undivided = rows.pop("")
    groups = [row.sample_id if by_clip else _title(_path(row)) for row in undivided]
    divided = split_rows(undivided, groups, share_out(DATASETS["ptsd_in_the_wild"], len(undivided)), seed, where=str(folder))
    rule = f"There are no folders of splits; ours is by {'clip' if by_clip else 'title up to the number of a part'}."
    return Converted(divided, sieve.drops, rules=[rule], findings=_twins(divided))


def _folders(base: Path) -> list[Path]:
    return [path for path in base.iterdir() if path.is_dir()] if base.is_dir() else []


def _row(path: Path, place: Path, split: str, number: int, prompts: DatasetPrompts | None) -> Row:
    dataset = DATASETS["ptsd_in_the_wild"]
    names = (re.sub(r"[\s_-]+", " ", part).strip().lower() for part in path.relative_to(place).parts[:-1])
    label = next((LABELS[name] for name in names if name in LABELS), None)
    if label is None:
        raise DataError(str(path), "lies in no folder PTSD or No PTSD", "keep the folders as published", reason="unknown label")
    media = video_and_audio(path, str(path))
    own = "-".join(part for part in ("ptsd_in_the_wild", split, f"{number:04d}") if part)  # titles come again once they are simplified
    problem = question(dataset, tuple(media), None, where=str(path), prompts=prompts)
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label=label, media=media)


def _path(row: Row) -> Path:
    return Path(str(row.media["video"][0]))


def _title(path: Path) -> str:
    """The title without the number of a part, as videos of one series share it."""
    return _PART.sub("", path.stem).strip().lower() or path.stem.lower()


def _twins(rows: dict[str, list[Row]]) -> list[str]:
    """Sentences about videos of one name, and of one content, in several splits."""
    by_name: defaultdict[str, set[str]] = defaultdict(set)
    by_size: defaultdict[int, list[tuple[str, Path]]] = defaultdict(list)
    for split, its in rows.items():
        for path in map(_path, its):
            by_name[path.name.lower()].add(split)
            by_size[path.stat().st_size].append((split, path))
    by_content: defaultdict[str, set[str]] = defaultdict(set)
    for same in by_size.values():
        for split, path in same if len({split for split, _ in same}) > 1 else ():  # only equal sizes can be equal files
            by_content[file_digest(path)].add(split)
    found = {"Names": by_name, "Contents": by_content}
    counts = {what: sum(len(splits) > 1 for splits in its.values()) for what, its in found.items()}
    return [f"{what} of videos that are in more than one split: {count}." for what, count in counts.items() if count]
