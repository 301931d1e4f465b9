"""`hba reproduce`: a table of the paper, measured, beside what is published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hba_ray.cli.base import Overrides, console, quiet, say, show
from hba_ray.specs.shipped import TOY, experiments_folder, find_table

app = typer.Typer()

Table = Annotated[str, typer.Argument(metavar="TABLE", help="Number of a table of the paper, e.g. T11.")]
Scale = Annotated[
    Literal["full", "toy"], typer.Option(help="toy: the same plan on the toy atlas with a tiny random model; it gives no verdict.")
]
Folder = Annotated[Path | None, typer.Option("--experiments", help="Folder of the shipped specs, where it is not beside the package.")]


@app.command()
def reproduce(table: Table, overrides: Overrides = None, scale: Scale = "full", experiments: Folder = None) -> None:
    """Run or read the trials of a table of the paper, and judge them; exit code 3 where a claim is not met."""
    folder = experiments_folder(experiments)
    file = find_table(table, folder)
    from hba_ray.sweeps.reproduce import read_table

    spec = read_table(file, overrides or [], toy=folder / TOY if scale == "toy" else None)
    quiet(spec)
    from hba_ray.report.formats import terminal
    from hba_ray.report.published import outcome, sheets, title
    from hba_ray.sweeps.reproduce import reproduce as run

    made = run(spec, say, overrides or [])
    console.print(terminal(title(made.verdict), sheets(made.verdict, made.differs)))
    for file in made.files:
        show("table", file)
    show("report", made.page)
    show("outcome", outcome(made.verdict))
    if not made.verdict.is_met:
        raise typer.Exit(3)
