"""`hba atlas list` and `check`: the datasets that the benchmark knows, and the rows that are there."""

from __future__ import annotations

from typing import Annotated

import typer

from hba_ray.cli.base import AtlasOrSpec, Overrides, console, read, say, show_sheet

app = typer.Typer(no_args_is_help=True, help="Look at an atlas, and check it.")


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
def check_atlas(
    atlas: AtlasOrSpec,
    overrides: Overrides = None,
    clips: Annotated[bool, typer.Option("--clips", help="Decode every clip, too: damage, silence, black, lengths. Takes time.")] = False,
) -> None:
    """Rows beside Table 7, modalities, and what descriptors say: damage, silence, frames without a face, what is missing."""
    from hba_ray.actions.check_atlas import check_clips_of, clip_sheet, descriptor_sheet, examine, modality_sheet, row_sheet
    from hba_ray.actions.describe import index_of, with_streams
    from hba_ray.data.tasks import SPLITS
    from hba_ray.progress import progress
    from hba_ray.steps.inputs.describe import settings
    from hba_ray.store.folders import Storage

    spec = with_streams(read(atlas, overrides))
    index, found = index_of(spec)
    show_sheet(row_sheet(index))
    show_sheet(modality_sheet(index))
    for drop in index.drops:
        say(f"dropped {drop.row} ({drop.dataset}): {drop.reason}")
    for sentence in found:
        say(sentence)
    stops = False
    if clips:
        with progress("decode", total=len(index.table)) as bar:
            checked, unreadable = check_clips_of(spec, index, bar.reach)
        show_sheet(clip_sheet(checked, unreadable))
        for place in (place for one in checked for place in one.places):
            say(place)
        stops = spec.atlas.on_bad_row == "fail" and bool(unreadable or any(one.bad for one in checked))
    health = examine(Storage(spec.compute.storage).descriptors, settings(spec), index, SPLITS)
    if any(one.described or one.bad for one in health):
        show_sheet(descriptor_sheet(health))
    if any(one.missing for one in health):
        say(f"{sum(one.missing for one in health)} descriptors are missing or stale: hba describe {atlas} extracts them")
    if stops:
        say("a run would stop at the first bad clip; with atlas.on_bad_row=drop it leaves such rows out and counts them")
        raise typer.Exit(1)
