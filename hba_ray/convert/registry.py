"""Converts the public files of a corpus into an atlas in the jsonl layout, and accounts for every row.

The account shows each count beside the published one (Table 7). Where the two differ, it lists reasons
that add up to the difference.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hba_ray.convert.base import Converted, Difference
from hba_ray.convert.cremad import read_cremad
from hba_ray.convert.meld import read_meld
from hba_ray.convert.mustard import read_mustard
from hba_ray.data.atlas import Drop
from hba_ray.data.tasks import DATASETS, SPLITS, Dataset, find_dataset
from hba_ray.data.writers import write_jsonl
from hba_ray.errors import SpecError
from hba_ray.specs import AtlasSpec


@dataclass(frozen=True)
class SplitCount:
    """The rows of one dataset in one split, counted.

    Attributes:
        published: rows in Table 7; None where it has no count.
        labels: label -> rows, in the order of the dataset's labels.
        differences: reasons that add up to `rows - published`.
    """

    dataset: str
    split: str
    rows: int
    published: int | None
    labels: dict[str, int]
    differences: list[Difference]


@dataclass(frozen=True)
class Conversion:
    """The card of a converted atlas.

    Attributes:
        files: split -> jsonl file.
        drops: rows of the public files that were left out.
    """

    source: str
    seed: int
    files: dict[str, str]
    counts: list[SplitCount]
    drops: list[Drop]

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON values."""
        return asdict(self)


def convert(spec: AtlasSpec, folder: Path, seed: int = 0) -> Conversion:
    """Writes `train.jsonl`, `validation.jsonl` and `test.jsonl` into `folder`.

    Datasets, split surprise and what to do with bad rows are as `spec` says. Its `modalities` and
    `limit` are left to the reader, so that the arms of an ablation see the same rows and prompts.

    Args:
        seed: of the split, where the corpus publishes none.

    Raises:
        SpecError: the source has no converter, or none of `spec.datasets`.
        DataError: a defect of the public files; names file, row and reason.
    """
    datasets = _datasets(spec)
    converted = _read(spec, datasets, seed)
    files = {split: str(write_jsonl(converted.rows[split], folder, split)) for split in SPLITS}
    counts = [_count(converted, dataset, split) for dataset in datasets for split in SPLITS]
    return Conversion(spec.source, seed, files, counts, converted.drops)


def _datasets(spec: AtlasSpec) -> list[Dataset]:
    """The datasets of the source that the spec asks for."""
    held = [dataset for dataset in DATASETS.values() if dataset.source == spec.source]
    if spec.source not in ("meld", "mustard", "cremad"):
        raise SpecError("atlas.source", f"'{spec.source}' is read as it is, not converted", "converters: meld, mustard, cremad")
    if spec.datasets is None:
        return held
    wanted = {find_dataset(name).id for name in spec.datasets}
    if others := sorted(wanted - {dataset.id for dataset in held}):
        known = ", ".join(dataset.id for dataset in held)
        raise SpecError("atlas.datasets", f"source '{spec.source}' does not hold {', '.join(others)}", f"it holds: {known}")
    return [dataset for dataset in held if dataset.id in wanted]


def _read(spec: AtlasSpec, datasets: list[Dataset], seed: int) -> Converted:
    root = Path(spec.root or "")
    if spec.source == "meld":
        ids = [dataset.id for dataset in datasets]
        return read_meld(root, datasets=ids, split_surprise=spec.split_surprise, on_bad_row=spec.on_bad_row)
    if spec.source == "mustard":
        return read_mustard(root, seed=seed, on_bad_row=spec.on_bad_row)
    return read_cremad(root, seed=seed, by_clip=spec.split_by == "clip", on_bad_row=spec.on_bad_row)


def _count(converted: Converted, dataset: Dataset, split: str) -> SplitCount:
    labels = Counter(row.label for row in converted.rows[split] if row.dataset == dataset)
    order = sorted(label for label in labels if label is not None)
    order.sort(key=lambda label: dataset.labels.index(label) if label in dataset.labels else len(dataset.labels))
    by_label = {label: labels[label] for label in order}
    rows = labels.total()
    published = dataset.counts[SPLITS.index(split)] if dataset.counts else None
    differences = _differences(converted, dataset, split, rows)
    return SplitCount(dataset.id, split, rows, published, by_label, differences)


def _differences(converted: Converted, dataset: Dataset, split: str, rows: int) -> list[Difference]:
    """The reasons that the converter knows; what they leave unexplained is put down to the size of the public files."""
    if dataset.counts is None:
        return []
    known = converted.differences.get(split, [])
    rest = rows - dataset.counts[SPLITS.index(split)] - sum(difference.rows for difference in known)
    if not rest:
        return list(known)
    usable = sum(row.dataset == dataset for its_rows in converted.rows.values() for row in its_rows)
    return [*known, Difference(rest, f"the public files give {usable} rows over all splits, the publication counts {sum(dataset.counts)}")]
