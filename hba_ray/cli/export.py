"""`hba export`: the trained model of a run, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hba_ray.cli.base import check_run, console, quiet, show

app = typer.Typer()


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    arm: Annotated[str | None, typer.Option(help="Model to write: sft, sft+bam or grpo; the last stage's by default.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder to write; model-ARM in the run's folder by default.")] = None,
) -> None:
    """Write a run's trained model in the layout of Qwen2.5-Omni, which transformers and vLLM load; heads lie beside it."""
    check_run(folder, "resolved.yaml")
    from hba_ray.sweeps.runs import open_run

    run = open_run(folder)
    quiet(run.spec)
    from hba_ray.models.export import ADAPTERS
    from hba_ray.sweeps.export import export_run

    written = export_run(run, arm, to)
    show("model", written)
    if (written / ADAPTERS).is_dir():
        show("adapters", written / ADAPTERS)
        console.print("transformers and vLLM load the model without its adapters; the README.md beside them says how to apply them")
