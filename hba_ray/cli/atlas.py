"""`hba atlas list`, `check`, `build`, `card`, `new`: known datasets, defects of rows, an atlas of them, its card, one's own data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hba_ray.cli.base import AtlasOrSpec, Overrides, console, read, say, show, show_sheet

if TYPE_CHECKING:
    from hba_ray.actions.atlas_health import Finding
    from hba_ray.data.atlas import AtlasIndex
    from hba_ray.specs import ExperimentSpec

app = typer.Typer(no_args_is_help=True, help="Look at an atlas, and check it.")


@app.command("list")
def list_datasets() -> None:
    """The benchmark's four dimensions, ten tasks and datasets."""
    from hba_ray.actions.taxonomy import taxonomy

    for sheet in taxonomy():
        show_sheet(sheet)


@app.command("check")
def check_atlas(
    atlas: AtlasOrSpec,
    overrides: Overrides = None,
    clips: Annotated[
        bool, typer.Option("--clips", help="Decode every clip, too: damage, silence, black, lengths, clips that are the same. Takes time.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with 3 where there is an error or a warning.")] = False,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="CSV for all findings; atlas_check.csv in the storage by default.")
    ] = None,
) -> None:
    """Rows beside Table 7, modalities, leaks, repeats, labels, and what descriptors say: damage, silence, frames without a face."""
    from hba_ray.actions.atlas_health import row_findings
    from hba_ray.actions.check_atlas import descriptor_sheet, examine, modality_sheet, row_sheet
    from hba_ray.actions.describe import index_of, with_streams
    from hba_ray.data.tasks import SPLITS
    from hba_ray.steps.inputs.describe import settings
    from hba_ray.store.folders import Storage
    from hba_ray.store.scratch import folder_here

    spec = with_streams(read(atlas, overrides))
    lenient = spec.model_copy(update={"atlas": spec.atlas.model_copy(update={"on_bad_row": "drop", "leaks": "tell"})})
    index, found = index_of(lenient if all(part.source == "released" for part in spec.atlas.parts) else spec)
    show_sheet(row_sheet(index))
    show_sheet(modality_sheet(index))
    for sentence in found:
        say(sentence)
    decoded, bad_clips = _decode(index, spec) if clips else ([], False)
    findings = [*row_findings(index), *decoded]
    health = examine(Storage(spec.compute.storage).descriptors, settings(spec), index, SPLITS)
    if any(one.described or one.bad for one in health):
        show_sheet(descriptor_sheet(health))
    if any(one.missing for one in health):
        say(f"{sum(one.missing for one in health)} descriptors are missing or stale: hba describe {atlas} extracts them")
    if findings:
        _show_findings(findings, to or folder_here(spec.compute.storage) / "atlas_check.csv")
    stops = spec.atlas.on_bad_row == "fail" and bool(index.drops or bad_clips)
    if stops:
        say("a run would stop at the first bad row or clip; with atlas.on_bad_row=drop it leaves such rows out and counts them")
    if strict and any(finding.severity != "note" for finding in findings):
        raise typer.Exit(3)
    if stops:
        raise typer.Exit(1)


def _decode(index: AtlasIndex, spec: ExperimentSpec) -> tuple[list[Finding], bool]:
    """What is wrong with the clips once they are decoded, and whether one of them, or its row, cannot be read."""
    from hba_ray.actions.atlas_health import clip_findings, content_findings
    from hba_ray.actions.check_atlas import check_clips_of, clip_sheet
    from hba_ray.progress import progress

    with progress("decode", total=len(index.table)) as bar:
        clips, unreadable, contents = check_clips_of(spec, index, bar.reach, places=sys.maxsize)
    show_sheet(clip_sheet(clips, unreadable))
    return [*clip_findings(clips), *content_findings(contents)], bool(unreadable or any(one.bad for one in clips))


def _show_findings(findings: list[Finding], file: Path) -> None:
    from hba_ray.actions.atlas_health import finding_sheet, write_findings

    file.parent.mkdir(parents=True, exist_ok=True)
    write_findings(findings, file)
    show_sheet(finding_sheet(findings))
    show("findings", file)


@app.command("build")
def build_atlas(
    atlas: AtlasOrSpec,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder for the atlas.")],
    overrides: Overrides = None,
    layout: Annotated[Literal["parquet", "jsonl"], typer.Option(help="Clips inside the files, or beside them.")] = "parquet",
    media: Annotated[Literal["copy", "link"], typer.Option(help="With jsonl: copy clips, or give their files a second name.")] = "copy",
    part_mb: Annotated[int, typer.Option(min=1, help="Megabytes of clips at which a file ends.")] = 500,
    workers: Annotated[int, typer.Option(min=1, help="Files that are written at a time.")] = 4,
) -> None:
    """Write the rows of a spec, of all its corpora, as one atlas in a released layout; started again, it goes on where it was."""
    from hba_ray.actions.build_atlas import build_atlas
    from hba_ray.actions.card import README, count_sheet, problem_sheet
    from hba_ray.data.build import Target

    spec = read(atlas, overrides)
    to = to.expanduser()
    target = Target(to, layout, part_mb << 20, media == "link", spec.atlas.on_bad_row)
    card = build_atlas(spec, target, workers=workers, say=say)
    for sheet in (count_sheet(card), problem_sheet(card)):
        if sheet.rows:
            show_sheet(sheet)
    show("atlas", to)
    show("card", to / README)


@app.command("card")
def atlas_card(
    atlas: AtlasOrSpec,
    overrides: Overrides = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Markdown file to write; printed by default.")] = None,
) -> None:
    """Describe an atlas as a dataset card of the Hugging Face hub: sources, licences, rules, counts, lengths, defects; no row's text."""
    from hba_ray.actions.card import as_markdown, make_card
    from hba_ray.actions.describe import make_atlas
    from hba_ray.store.folders import write_text

    spec = read(atlas, overrides)
    text = as_markdown(make_card(spec, make_atlas(spec, say)))
    if to is None:
        sys.stdout.write(text)
    else:
        write_text(to, text)
        show("card", to)


@app.command("new")
def new(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder with a csv or jsonl of clips and labels.")]) -> None:
    """Write a commented dataset.yaml for data of your own: columns are guessed from the files, labels counted."""
    from hba_ray.actions.new_dataset import new_dataset
    from hba_ray.specs.sections.own import read_declaration

    file, labels = new_dataset(folder)
    own = read_declaration(str(folder))
    for label, rows in labels.items():
        console.print(f"{rows:7d}  {label}")
    show("declaration", file)
    say(f"look it over; a spec then takes atlas.source=own atlas.root={folder} atlas.train_also=[{own.dataset}]")
