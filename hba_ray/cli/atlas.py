"""`hba atlas list` and `check`: the datasets that the benchmark knows, and the rows that are there."""

from __future__ import annotations

from pathlib import Path

import typer

from hba_ray.cli.base import Overrides, SpecFile, console, read, say
from hba_ray.errors import SpecError

app = typer.Typer(no_args_is_help=True, help="Look at, build and check an atlas.")


@app.command("list")
def list_datasets() -> None:
    """The datasets that the benchmark knows."""
    from rich.table import Table

    from hba_ray.data.tasks import DATASETS

    table = Table("id", "name", "task", "metric", "train", "validation", "test", box=None, pad_edge=False)
    for dataset in DATASETS.values():
        counts = [str(count) for count in dataset.counts] if dataset.counts else ["–"] * 3
        table.add_row(dataset.id, dataset.title, dataset.task.id, dataset.task.metric, *counts)
    console.print(table)


@app.command("check")
def check_atlas(spec: SpecFile, overrides: Overrides = None) -> None:
    """Index a spec's atlas and set its counts beside Table 7; clips are not decoded."""
    from rich.table import Table

    from hba_ray.data.atlas import build_index
    from hba_ray.data.tasks import DATASETS, SPLITS

    loaded = read(spec, overrides).atlas
    if loaded.source != "released":
        raise SpecError(
            str(spec),
            f"atlas.source is '{loaded.source}'; only files that are there can be checked",
            "give atlas.source=released atlas.root=FOLDER",
        )
    index = build_index(loaded, Path(loaded.root or ""))
    table = Table("dataset", "split", "rows", "Table 7", box=None, pad_edge=False)
    for dataset, counts in index.counts().items():
        published = DATASETS[dataset].counts or (None, None, None)
        for split, expected in zip(SPLITS, published, strict=True):
            table.add_row(dataset, split, str(counts.get(split, 0)), "–" if expected is None else str(expected))
    console.print(table)
    for drop in index.drops:
        say(f"dropped {drop.row} ({drop.dataset}): {drop.reason}")
