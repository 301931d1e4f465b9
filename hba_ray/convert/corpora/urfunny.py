"""Converter of UR-FUNNY v2: whether a line of a talk is a punchline, given the sentences before it, in the official folds.

Expected in the folder, as published: `data_folds.pkl`, `language_sdk.pkl` and `humor_label_sdk.pkl`; and, for rows with media, the
videos `urfunny2_videos/<id>.mp4`, which show the context and the punchline. Without videos rows are text-only. The pickles are
read without running anything in them (hba_ray/convert/unpickling.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted, Sieve, labelled_row, left_out
from hba_ray.convert.media import first_folder, needed_file, video_and_audio
from hba_ray.convert.splits import split_named
from hba_ray.convert.tables import column, identifier, read_text
from hba_ray.convert.unpickling import read_pickle
from hba_ray.convert.wording import DatasetPrompts, question
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from hba_ray.specs.sections.atlas import OnBadRow
from hba_ray.specs.sections.corpora import UrfunnySpec

FOLDS, LANGUAGE, LABELS = "data_folds.pkl", "language_sdk.pkl", "humor_label_sdk.pkl"
CLIP_FOLDERS = ("urfunny2_videos", "videos")
NOT_KEPT = "not in the list of rows to keep"


def convert(request: ConversionRequest) -> Converted:
    """The rows of UR-FUNNY v2; see `read_urfunny`."""
    return read_urfunny(request.folder, request.spec.corpora.urfunny, on_bad_row=request.spec.on_bad_row, prompts=request.prompts)


def read_urfunny(
    folder: Path, rules: UrfunnySpec | None = None, *, on_bad_row: OnBadRow = "fail", prompts: DatasetPrompts | None = None
) -> Converted:
    """The rows of the folds. Labels and texts also hold ids of version 1, which are passed over.

    Raises:
        DataError: names file, id and reason.
    """
    rules = rules or UrfunnySpec()
    folds, texts, labels = (_dict(needed_file(folder, (name, f"sdk/{name}"))) for name in (FOLDS, LANGUAGE, LABELS))
    clips = first_folder(folder, CLIP_FOLDERS)
    kept = _ids_to_keep(folder / rules.keep) if rules.keep else None
    sieve = Sieve("urfunny", on_bad_row)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for name, ids in folds.items():
        split = split_named(str(name), f"{folder / FOLDS}, fold {name!r}")
        if not isinstance(ids, (list, tuple)) and not hasattr(ids, "tolist"):
            raise DataError(f"{folder / FOLDS}, fold {name!r}", "is no list of ids", "use the file as published", reason="wrong type")
        for sample in ids:
            where = f"{folder / FOLDS}, id {sample}"
            if kept is not None and str(sample) not in kept:
                sieve.leave_out(where, NOT_KEPT, split)
                continue
            with sieve.row(split):
                if str(sample) in seen:
                    raise DataError(where, "stands in the folds twice", reason="duplicate row")
                name = identifier({"id": str(sample)}, "id", where)
                row = _row(name, _of(texts, sample, LANGUAGE, where), _of(labels, sample, LABELS, where), clips, where, rules, prompts)
                rows[split].append(row)
                seen.add(str(sample))
    if kept is not None and (unknown := sorted(kept - seen - {drop.row.rpartition(" ")[2] for drop in sieve.drops})):
        raise DataError(
            str(folder / (rules.keep or "")), f"names {len(unknown)} ids that no fold holds, the first {unknown[0]}", reason="unknown id"
        )
    stated = "those in " + rules.keep if rules.keep else "all of them; the paper used 2,125 by a rule that is not known"
    context = f"The sentences before the punchline are {'shown' if rules.context else 'not shown'}."
    return Converted(rows, sieve.drops, left_out(sieve.drops, SPLITS), [f"Rows of the official folds: {stated}.", context])


def _dict(path: Path) -> Mapping[Any, Any]:
    found = read_pickle(path)
    if not isinstance(found, dict):
        raise DataError(str(path), f"holds {type(found).__name__}, not a dict", "use the file as published", reason="wrong type")
    return found


def _ids_to_keep(path: Path) -> set[str]:
    return {line.strip() for line in read_text(path).splitlines() if line.strip()}


def _of(table: Mapping[Any, Any], sample: Any, file: str, where: str) -> Any:
    """The entry of an id, which stands as a number in one file and as text in another."""
    name = str(sample)
    keys = (sample, name, int(name)) if name.isdecimal() else (sample, name)
    found = next((table[key] for key in keys if key in table), None)
    if found is None:
        raise DataError(where, f"{file} has no entry for it", "use the files of one version", reason="missing value")
    return found


def _row(name: str, said: Any, label: Any, clips: Path | None, where: str, rules: UrfunnySpec, prompts: DatasetPrompts | None) -> Row:
    dataset = DATASETS["urfunny"]
    if not isinstance(said, dict):
        raise DataError(where, f"its entry in {LANGUAGE} is {type(said).__name__}, not a dict", reason="wrong type")
    if label not in (0, 1):
        raise DataError(where, f"its label in {LABELS} is neither 0 nor 1", "use the file as published", reason="unknown label")
    punchline = " ".join(_sentences(said, "punchline_sentence", where))
    context = "\n".join(_sentences(said, "context_sentences", where)) if rules.context else ""
    media = video_and_audio(clips / f"{name}.mp4", where) if clips else {}
    problem = question(dataset, tuple(media), punchline, context or None, where=where, prompts=prompts)
    own = f"urfunny-{name}"
    return labelled_row(dataset, sample_id=own, clip_id=own, problem=problem, label="humour" if label else "not humour", media=media)


def _sentences(said: Mapping[str, Any], name: str, where: str) -> list[str]:
    """The sentences of a value, which is one text, or a list of them."""
    value = said.get(name)
    if isinstance(value, (list, tuple)):
        return [" ".join(column({name: text}, name, where).split()) for text in value if text != ""]
    return [" ".join(column(said, name, where).split())]
