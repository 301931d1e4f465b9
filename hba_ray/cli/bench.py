"""`hba bench`: what parts of a finished experiment cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hba_ray.cli.base import Overrides, check_run, console, quiet, read, show

app = typer.Typer(no_args_is_help=True, help="Measure what parts of a finished experiment cost on this machine.")


@app.callback()
def _group() -> None:
    """A group, though it has one command."""


@app.command()
def bam(
    spec: Annotated[Path, typer.Argument(metavar="SPEC|RUN", help="A spec with the stage bam, or the folder of a run of one.")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that are measured, one at a time.")] = 500,
    warm_up: Annotated[int, typer.Option(min=1, help="Rows before them that are not counted.")] = 1,
) -> None:
    """Latency and memory of a forward pass with adapters and without (Table 13)."""
    if spec.is_dir():
        check_run(spec, "resolved.yaml")
    loaded = read(spec / "resolved.yaml" if spec.is_dir() else spec, overrides)
    quiet(loaded)
    from hba_ray.runtime.progress import progress
    from hba_ray.sweeps.cost import TABLE, measure_cost

    with progress("bench bam", total=None) as bar:
        found, run = measure_cost(loaded, rows, warm_up, bar.advance)
    from hba_ray.report.cost import cost_sheet
    from hba_ray.report.formats import terminal

    console.print(terminal(f"{loaded.name} ({loaded.model.backbone})", (cost_sheet(found),)))
    show("table", run / TABLE)
