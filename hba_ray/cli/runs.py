"""`hba run` and `report`: do a spec, and look at what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hba_ray.cli.base import Overrides, SpecFile, check_run, console, quiet, read, say, show

app = typer.Typer()


@app.command()
def run(spec: SpecFile, overrides: Overrides = None) -> None:
    """Run a spec to its end; started again, it goes on where it was."""
    loaded = read(spec, overrides)
    quiet(loaded)
    from hba_ray.report.tables import terminal_table
    from hba_ray.sweeps.sweep import run_sweep
    from hba_ray.sweeps.trial import run_experiment

    if loaded.sweep is not None:
        swept = run_sweep(loaded, say)
        if swept.report is not None:
            console.print(terminal_table(swept.report))
            show("table", swept.table)
            show("report", swept.page)
        show("mlflow", swept.mlflow)
        swept.check()
        return
    finished = run_experiment(loaded, say)
    console.print(terminal_table(finished.report))
    show("table", finished.table)
    show("report", finished.page)
    show("mlflow", finished.mlflow)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    format: Annotated[
        Literal["html", "markdown", "csv", "latex", "json"] | None,
        typer.Option(help="Write all tables in one form and print nothing but where; csv is a file a table."),
    ] = None,
) -> None:
    """Print the tables of a finished run or sweep, and make its page again."""
    check_run(folder, "report.json")
    from hba_ray.report.files import write_tables
    from hba_ray.report.tables import read_json, terminal_table
    from hba_ray.sweeps.runs import rebuild_page

    file = folder / "report.json"
    found = read_json(file.read_text(encoding="utf-8"), where=str(file))
    if format in (None, "html"):
        page = rebuild_page(folder)
        if format is None:
            console.print(terminal_table(found))
        show("report", page)
    else:
        show("tables", write_tables(found, folder, format))
