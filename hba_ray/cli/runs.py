"""`hba run`, `reproduce`, `report`, `describe`, `judge` and `export`: do a spec, and look at or use what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hba_ray.cli.base import AtlasOrSpec, Overrides, SpecFile, console, quiet, read, say, show
from hba_ray.report.formats import FORMATS, write_document
from hba_ray.specs.paper import TOY, experiments_folder, find_table
from hba_ray.store.folders import REPORT, RESOLVED, file_of_run

app = typer.Typer()
kept = typer.Typer(no_args_is_help=True, help="Look after what runs have left.")


@app.command()
def run(
    spec: SpecFile,
    overrides: Overrides = None,
    redo: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", help="Do a finished step again, by its name in `hba plan`; may be given several times."),
    ] = None,
) -> None:
    """Run a spec to its end; started again, it goes on where it was."""
    loaded = read(spec, overrides)
    quiet(loaded)
    from hba_ray.report.tables import terminal_table
    from hba_ray.runs.plan import plan
    from hba_ray.runs.run import run_experiment
    from hba_ray.runs.sweep import run_sweep
    from hba_ray.runs.sweep_plan import plan_sweep
    from hba_ray.steps.run import undo

    if loaded.sweep is not None:
        sweep = plan_sweep(loaded)
        undo([trial.steps for trial in sweep.trials], redo or [], say)
        swept = run_sweep(sweep, say)
        if swept.report is not None:
            console.print(terminal_table(swept.report))
            show("table", swept.table)
            show("report", swept.page)
        show("mlflow", swept.mlflow)
        swept.check()
        return
    experiment = plan(loaded)
    undo([experiment.steps], redo or [], say)
    finished = run_experiment(experiment, say)
    console.print(terminal_table(finished.report))
    show("table", finished.table)
    show("report", finished.page)
    show("mlflow", finished.mlflow)


HTML = "html"
"""The format that is the page itself; tables are written in those of `report.formats`."""


def known_format(name: str | None) -> str | None:
    """
    Raises:
        BadParameter: no format has this name.
    """
    if name is None or name in (HTML, *FORMATS):
        return name
    raise typer.BadParameter(f"'{name}' is none of {', '.join((HTML, *FORMATS))}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    format: Annotated[
        str | None,
        typer.Option(
            metavar="|".join((HTML, *FORMATS)),
            callback=known_format,
            help="Write all tables in one format and print nothing but where; csv is a file a table.",
        ),
    ] = None,
) -> None:
    """Print the tables of a finished run or sweep, and make its page again."""
    file = file_of_run(folder, REPORT)
    from hba_ray.report.tables import document, read_json, terminal_table
    from hba_ray.runs.opened import ledger_steps, rebuild_page
    from hba_ray.store.finished import first_damage

    for step in ledger_steps(folder):
        if (damage := first_damage(step.folder)) is not None:
            say(f"{step.folder / damage.file}: {damage.what}; the tables were made before that")
    found = read_json(file.read_bytes(), where=str(file))
    if format in (None, HTML):
        page = rebuild_page(folder)
        if format is None:
            console.print(terminal_table(found))
        show("report", page)
    else:
        show("tables", write_document(document(found), folder, format))


Table = Annotated[str, typer.Argument(metavar="TABLE", help="Number of a table of the paper, e.g. T11.")]
Scale = Annotated[
    Literal["full", "toy"], typer.Option(help="toy: the same plan on the toy atlas with a tiny random model; it gives no verdict.")
]
Folder = Annotated[Path | None, typer.Option("--experiments", help="Folder of the shipped specs, where it is not beside the package.")]


@app.command()
def reproduce(table: Table, overrides: Overrides = None, scale: Scale = "full", experiments: Folder = None) -> None:
    """Run or read the trials of a table of the paper, and set them beside what is published; exit code 3 where a claim is not met."""
    folder = experiments_folder(experiments)
    file = find_table(table, folder)
    from hba_ray.runs.reproduce import read_table

    spec = read_table(file, overrides or [], toy=folder / TOY if scale == "toy" else None)
    quiet(spec)
    from hba_ray.report.formats import terminal
    from hba_ray.report.paper_table import outcome, sheets, title
    from hba_ray.runs.reproduce import reproduce as run

    made = run(spec, say, overrides or [])
    console.print(terminal(title(made.verdict), sheets(made.verdict, made.differs)))
    for file in made.files:
        show("table", file)
    show("report", made.page)
    show("outcome", outcome(made.verdict))
    if not made.verdict.is_met:
        raise typer.Exit(3)


@app.command()
def describe(atlas: AtlasOrSpec, overrides: Overrides = None) -> None:
    """Extract pose, acoustic and transcript descriptors of an atlas; started again, it goes on where it was."""
    loaded = read(atlas, overrides)
    quiet(loaded)
    from rich.table import Table

    from hba_ray.actions.describe import describe_atlas, with_streams
    from hba_ray.store.folders import Storage

    summary = describe_atlas(with_streams(loaded), say)
    table = Table("stream", "rows", "described", "no clip", "masked", "clips", "extracted now", "seconds", box=None, pad_edge=False)
    for stream, found in summary.streams.items():
        masked = ", ".join(f"{reason}: {rows}" for reason, rows in found.bad.items()) or "0"
        counts = (str(found.clips), str(found.extracted))
        table.add_row(stream, str(found.rows), str(found.described), str(found.absent), masked, *counts, f"{found.seconds:.1f}")
    console.print(table)
    for reason, rows in summary.unreadable.items():
        say(f"{rows} rows could not be read: {reason}")
    show("descriptors", Storage(loaded.compute.storage).descriptors)


@app.command()
def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as `hba run` prints it.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Of the judge, e.g. prompts=paraphrased.")] = None,
    labels: Annotated[Path | None, typer.Option(help="CSV of a person's labels: sample_id, label, and dataset where ids repeat.")] = None,
    arm: Annotated[str | None, typer.Option(help="The arm to grade; all by default.")] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Instead of grading, write a CSV of so many answers for a person to label.")
    ] = None,
) -> None:
    """Grade a run's open answers with another judge or other prompts, without generating them again."""
    file_of_run(run, RESOLVED)
    from hba_ray.actions.judge import TITLE, judge_run, write_label_sheet
    from hba_ray.report.formats import terminal

    if sample is not None:
        show("labels", write_label_sheet(run, arm, sample))
        return
    judged = judge_run(run, settings or [], say, labels=labels, only=arm)
    console.print(terminal(TITLE, judged.sheets))
    show("graders", judged.folder / "graders.md")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    arm: Annotated[str | None, typer.Option(help="Model to write: sft, sft+bam or grpo; the last stage's by default.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder to write; model-ARM in the run's folder by default.")] = None,
) -> None:
    """Write a run's trained model in the layout of Qwen2.5-Omni, which transformers and vLLM load; heads lie beside it."""
    file_of_run(folder, RESOLVED)
    from hba_ray.runs.opened import open_run

    run = open_run(folder)
    quiet(run.spec)
    from hba_ray.actions.export import export_run
    from hba_ray.models.export import ADAPTERS

    written = export_run(run, arm, to)
    show("model", written)
    if (written / ADAPTERS).is_dir():
        show("adapters", written / ADAPTERS)
        console.print("transformers and vLLM load the model without its adapters; the README.md beside them says how to apply them")


@kept.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN_OR_STORAGE", help="Folder of a run, or of all runs.")] = Path("runs"),
) -> None:
    """Read every file of finished steps again; exit code 1 where one is missing or is not what it was."""
    from hba_ray.actions.verify import verify as read_again
    from hba_ray.progress import progress

    with progress("steps", total=None) as bar:
        verified = read_again(folder, lambda number, total: bar.advance())
    for file, what in verified.found:
        show(str(file), what)
    former = f"; {verified.unlisted} of a former version list no files" if verified.unlisted else ""
    say(f"{verified.steps} finished steps, {verified.files} files: {len(verified.found)} damaged{former}")
    if verified.found:
        say("do their steps again: give `hba run` the same spec and overrides and --redo STEP; `hba plan` shows their names")
        raise typer.Exit(1)
