"""Converts the public files of a corpus into an atlas in the jsonl layout, and accounts for every row.

The account shows each count beside the published one (Table 7). Where the two differ, it lists reasons
that add up to the difference.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from hba_ray.convert.base import ConversionRequest, Converted, Difference
from hba_ray.convert.wording import load_prompts
from hba_ray.data.atlas import Drop
from hba_ray.data.tasks import DATASETS, SPLITS, Dataset, find_dataset
from hba_ray.data.writers import write_jsonl
from hba_ray.errors import SpecError
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.atlas import OUR_PROMPTS, SOURCES_READ_AS_THEY_ARE


class Converter(Protocol):
    """A module of this package that reads the public files of one corpus."""

    def convert(self, request: ConversionRequest) -> Converted: ...


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
        rules: sentences that say by which rules the rows were made, where another rule would have given others.
        findings: sentences about what the public files hold that a reader of results should know.
        sensitive: datasets whose texts belong in no log, error or page.
    """

    source: str
    seed: int
    files: dict[str, str]
    counts: list[SplitCount]
    drops: list[Drop]
    rules: list[str]
    findings: list[str]
    sensitive: list[str]

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
        SpecError: the source has no converter, or none of `spec.datasets`; the file of prompts is not in order.
        DataError: a defect of the public files; names file, row and reason.
    """
    converter = _converter(spec.source)
    datasets = _datasets(spec)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cut-", dir=folder) as scratch:
        wanted, prompts = [dataset.id for dataset in datasets], load_prompts(spec.prompts)
        request = ConversionRequest(Path(spec.root or "").expanduser(), wanted, seed, spec, Path(scratch), prompts)
        converted = converter.convert(request)
        files = {split: write_jsonl(converted.rows[split], folder, split).name for split in SPLITS}
    counts = [_count(converted, dataset, split) for dataset in datasets for split in SPLITS]
    sensitive = [dataset.id for dataset in datasets if dataset.sensitive]
    rules = converted.rules if spec.prompts == OUR_PROMPTS else [*converted.rules, f"Rows are asked in the words of {spec.prompts}."]
    return Conversion(spec.source, seed, files, counts, converted.drops, list(rules), converted.findings, sensitive)


def _datasets(spec: AtlasSpec) -> list[Dataset]:
    """The datasets of the source that the spec asks for."""
    held = held_by(spec)
    if spec.datasets is None:
        return held
    wanted = {find_dataset(name).id for name in spec.datasets}
    if others := sorted(wanted - {dataset.id for dataset in held}):
        known = ", ".join(dataset.id for dataset in held)
        raise SpecError("atlas.datasets", f"source '{spec.source}' does not hold {', '.join(others)}", f"it holds: {known}")
    return [dataset for dataset in held if dataset.id in wanted]


def held_by(spec: AtlasSpec) -> list[Dataset]:
    """The datasets of the one source that a spec names."""
    if spec.source == "own":
        return [DATASETS[own.dataset] for own in spec.own]
    return [dataset for dataset in DATASETS.values() if dataset.source == spec.source]


def _converter(source: str) -> Converter:
    """The module of this package that bears the name of the source.

    Raises:
        SpecError: the source has no converter.
    """
    if source in SOURCES_READ_AS_THEY_ARE:
        raise SpecError("atlas.source", f"'{source}' is read as it is, not converted", "name a corpus with a converter")
    return cast(Converter, import_module(f"hba_ray.convert.corpora.{source}"))


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
    known = [*converted.differences.get(split, []), *converted.differences.get(f"{dataset.id}/{split}", [])]
    rest = rows - dataset.counts[SPLITS.index(split)] - sum(difference.rows for difference in known)
    if not rest:
        return known
    usable = sum(row.dataset == dataset for its_rows in converted.rows.values() for row in its_rows)
    return [*known, Difference(rest, f"the public files give {usable} rows over all splits, the publication counts {sum(dataset.counts)}")]
