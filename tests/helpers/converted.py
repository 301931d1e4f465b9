"""Calls a converter as a conversion does, without writing its rows."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

from hba_ray.convert.base import ConversionRequest, Converted
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.specs import AtlasSpec


def converted(source: str, folder: Path, *, seed: int = 0, **atlas: Any) -> Converted:
    """A corpus, converted.

    Args:
        atlas: fields of the section `atlas`; `corpora` has the rules of the source alone.
    """
    rules = {"corpora": {source: atlas.pop("corpora")}} if "corpora" in atlas else {}
    spec = AtlasSpec.model_validate({"source": source, "root": str(folder), **atlas, **rules})
    datasets = list(spec.datasets or [dataset.id for dataset in DATASETS.values() if dataset.source == source])
    return import_module(f"hba_ray.convert.corpora.{source}").convert(ConversionRequest(folder, datasets, seed, spec, folder / "cut"))


def sizes(made: Converted, dataset: str | None = None) -> list[int]:
    """Rows in train, validation and test."""
    return [sum(dataset in (None, row.dataset.id) for row in made.rows[split]) for split in SPLITS]


def labels(made: Converted, split: str, dataset: str | None = None) -> dict[str | None, int]:
    return dict(Counter(row.label for row in made.rows[split] if dataset in (None, row.dataset.id)))


def by_sample(made: Converted) -> dict[str, Row]:
    return {row.sample_id: row for rows in made.rows.values() for row in rows}


def drops(made: Converted) -> dict[tuple[str, str], int]:
    """(split, reason) -> rows left out."""
    return dict(Counter((drop.split, drop.reason) for drop in made.drops))
