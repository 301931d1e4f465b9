"""`hba run`, `reproduce`, `report`, `describe`, `judge` and `export`: do a spec, and look at or use what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hba_ray.cli.base import RUN, AtlasOrSpec, Budget, Overrides, SpecFile, console, quiet, read, say, show
from hba_ray.errors import SpecError
from hba_ray.report.formats import FORMATS, write_document
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.specs.paper import ATLAS_SPEC, DESCRIPTIVE, TOY, experiments_folder, find_table, table_id
from hba_ray.store.folders import REPORT, RESOLVED, file_of_run
from hba_ray.store.scratch import stated

if TYPE_CHECKING:
    from hba_ray.runs.run import Finished
    from hba_ray.runs.sweep import FinishedSweep

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
    budget: Budget = None,
) -> None:
    """Run a spec to its end; started again, it goes on where it was."""
    loaded = read(spec, overrides)
    quiet(loaded)
    from hba_ray.report.tables import terminal_table
    from hba_ray.runs.meter import with_budget
    from hba_ray.runs.plan import plan
    from hba_ray.runs.run import run_experiment
    from hba_ray.runs.sweep import run_sweep
    from hba_ray.runs.sweep_plan import plan_sweep
    from hba_ray.steps.run import undo

    loaded = with_budget(loaded, budget)
    if loaded.sweep is not None:
        sweep = plan_sweep(loaded)
        undo([trial.steps for trial in sweep.trials], redo or [], say)
        swept = run_sweep(sweep, say)
        if swept.report is not None:
            console.print(terminal_table(swept.report))
            _show_results(swept)
        show("mlflow", swept.mlflow)
        swept.check()
        return
    experiment = plan(loaded)
    undo([experiment.steps], redo or [], say)
    finished = run_experiment(experiment, say)
    console.print(terminal_table(finished.report))
    _show_results(finished)
    show("mlflow", finished.mlflow)


def _show_results(finished: Finished | FinishedSweep) -> None:
    """Where others find the table and the page: a storage in a bucket is worked on in a folder that only this machine sees."""
    show("table", stated(finished.table))
    show("report", stated(finished.page))


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
    folder: Annotated[Path, RUN],
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
MoreTables = Annotated[list[str] | None, typer.Argument(metavar="TABLE|KEY=VALUE", help="More tables, and overrides, e.g. sft.lr=1e-4.")]
DescribedAtlas = Annotated[
    Path | None,
    typer.Option(
        "--atlas", metavar="ATLAS_OR_SPEC", help="Whose atlas is described; that of experiments/base/omnisapiens_7b.yaml by default."
    ),
]
Scale = Annotated[
    Literal["full", "toy"], typer.Option(help="toy: the same plan on the toy atlas with a tiny random model; it gives no verdict.")
]
Folder = Annotated[Path | None, typer.Option("--experiments", help="Folder of the shipped specs, where it is not beside the package.")]


@app.command()
def reproduce(
    table: Table, overrides: MoreTables = None, scale: Scale = "full", experiments: Folder = None, atlas: DescribedAtlas = None
) -> None:
    """Set measured numbers beside a table of the paper: those of its trials, which are run or read, or of an atlas.

    Exit code 3 where a claim is not met. T1, T2, T3, T7, T21, T22 and F1 (Figure 1) describe the atlas: they need no trials.
    """
    folder = experiments_folder(experiments)
    names = [table, *(word for word in overrides or [] if table_id(word))]
    overrides = [word for word in overrides or [] if not table_id(word)]
    of_atlas = [name for word in names if (name := table_id(word)) in DESCRIPTIVE]
    files = [find_table(word, folder) for word in names if table_id(word) not in DESCRIPTIVE]
    if atlas is not None and (files or scale == "toy"):
        what = "is for tables that describe an atlas, at full scale"
        raise SpecError("--atlas", what, f"ask for {', '.join(DESCRIPTIVE)} without --scale toy, or leave it out")
    if of_atlas:
        _reproduce_atlas(of_atlas, _atlas_spec(atlas, folder, overrides, scale))
    if not all([_reproduce_trials(file, folder, overrides, scale) for file in files]):
        raise typer.Exit(3)


def _atlas_spec(atlas: Path | None, folder: Path, overrides: list[str], scale: str) -> ExperimentSpec:
    """The spec whose atlas is described: the one named, or the paper's base spec, at its own scale or at that of the toy overlay."""
    if scale == "toy":
        return load_spec(folder / ATLAS_SPEC, ["compute.workers=0", *overrides], over=[folder / TOY])
    return read(atlas or folder / ATLAS_SPEC, overrides)


def _reproduce_atlas(names: list[str], spec: ExperimentSpec) -> None:
    quiet(spec)
    from hba_ray.actions.reproduce_atlas import reproduce_atlas
    from hba_ray.report.formats import terminal

    made = reproduce_atlas(list(dict.fromkeys(names)), spec, say)
    for table in made.tables:
        console.print(terminal(table.title, table.sheets))
    for file in made.files:
        show("table", file)
    show("report", made.page)
    for table in made.tables:
        show(f"outcome {table.id}", table.outcome)


def _reproduce_trials(file: Path, folder: Path, overrides: list[str], scale: str) -> bool:
    """Does or reads the trials of one table's spec, and shows the table. Returns whether its claims are met."""
    from hba_ray.runs.reproduce import read_table

    spec = read_table(file, overrides, toy=folder / TOY if scale == "toy" else None)
    quiet(spec)
    from hba_ray.report.formats import terminal
    from hba_ray.report.paper_table import outcome, sheets, title
    from hba_ray.runs.reproduce import reproduce as run

    made = run(spec, say, overrides)
    console.print(terminal(title(made.verdict), sheets(made.verdict, made.differs)))
    for file in made.files:
        show("table", file)
    show("report", made.page)
    show("outcome", outcome(made.verdict))
    return made.verdict.is_met


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
    run: Annotated[Path, RUN],
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
    folder: Annotated[Path, RUN],
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
