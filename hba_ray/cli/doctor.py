"""`hba doctor`: checks of an installation that cost minutes, before runs that cost days."""

from __future__ import annotations

from typing import Annotated

import typer

from hba_ray.cli.base import Overrides, SpecFile, console, quiet, read, say

app = typer.Typer(no_args_is_help=True, help="Check an installation.")


@app.callback()
def doctor() -> None:
    """Check an installation."""


@app.command()
def rollout(
    spec: SpecFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each set of modalities.")] = 1,
) -> None:
    """Send rows of a spec through transformers and vLLM: the prompts must be equal, and the probabilities agree."""
    loaded = read(spec, overrides)
    quiet(loaded)
    from rich.table import Table

    from hba_ray.sweeps.rollout_check import check_rollout

    found = check_rollout(loaded, rows, say)
    table = Table("row", "clips", "prompt tokens", "same prompt", "largest difference", "same greedy text", box=None, pad_edge=False)
    for row in found:
        clips = ", ".join(row.modalities) or "none"
        table.add_row(row.sample_id, clips, str(row.prompt_tokens), str(row.same_prompt), f"{row.largest:.2g}", str(row.same_greedy))
    console.print(table)
    raise typer.Exit(0 if all(row.holds for row in found) else 3)
