"""`hba run` and `report`: do a spec, and look at what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
            show("report", swept.table)
        show("mlflow", swept.mlflow)
        swept.check()
        return
    finished = run_experiment(loaded, say)
    console.print(terminal_table(finished.report))
    show("report", finished.table)
    show("mlflow", finished.mlflow)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]) -> None:
    """Print the table of a finished run."""
    check_run(folder, "report.json")
    from hba_ray.report.tables import read_json, terminal_table

    file = folder / "report.json"
    console.print(terminal_table(read_json(file.read_text(), where=str(file))))
    show("report", folder / "table.md")
