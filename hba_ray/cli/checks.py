"""`hba doctor` says whether a spec can be run here; `hba bench` measures what parts of a finished experiment cost here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from hba_ray.cli.base import Overrides, SpecFile, console, quiet, read, say, show
from hba_ray.store.folders import RESOLVED, file_of_run

OF_A_MACHINE = "machine"
"""The check that is meant where none is named."""


class _Checks(TyperGroup):
    """`hba doctor SPEC` is `hba doctor machine SPEC`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [OF_A_MACHINE, *args]
        return super().parse_args(ctx, args)


doctor = typer.Typer(cls=_Checks, help="Check an installation: `hba doctor [SPEC]` what this machine has of what a spec needs.")


@doctor.command(OF_A_MACHINE)
def machine(
    spec: Annotated[Path | None, typer.Argument(metavar="SPEC", help="Says what is needed; without it all is shown.")] = None,
    overrides: Overrides = None,
) -> None:
    """Show what this machine has: packages, processors, disk, services; exit code 5 where it lacks what the spec needs."""
    from rich.table import Table

    from hba_ray.actions.doctor import check_machine, known_differences
    from hba_ray.escaping import plain
    from hba_ray.report.differences import VALUES, sentences, value_table
    from hba_ray.specs import AtlasSpec, ExperimentSpec

    loaded = read(spec, overrides) if spec else ExperimentSpec(name="doctor", atlas=AtlasSpec(source="toy"))
    checks = check_machine(loaded, stated=spec is not None)
    table = Table("", "state", "found", box=None, pad_edge=False)
    for check in checks:
        table.add_row(check.what, check.state, check.found)
        if check.way_out:
            table.add_row("", "", f"→ {check.way_out}")
    console.print(table)
    differing = known_differences(loaded) if spec else ()
    if values := list(value_table(differing, missing="–")):
        shown = Table(*VALUES, box=None, pad_edge=False)
        for row in values:
            shown.add_row(*map(plain, row))
        console.print("", shown, sep="\n")
    for line in sentences(one for one in differing if not one.is_value):
        say(f"differs {line}")
    raise typer.Exit(5 if any(check.state == "missing" for check in checks) else 0)


@doctor.command()
def rollout(
    spec: SpecFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of each set of modalities.")] = 1,
) -> None:
    """Send rows of a spec through transformers and vLLM: the prompts must be equal, and the probabilities agree."""
    loaded = read(spec, overrides)
    quiet(loaded)
    from rich.table import Table

    from hba_ray.actions.rollout import check_rollout

    found = check_rollout(loaded, rows, say)
    table = Table("row", "clips", "prompt tokens", "same prompt", "largest difference", "same greedy text", box=None, pad_edge=False)
    for row in found:
        clips = ", ".join(row.modalities) or "none"
        table.add_row(row.sample_id, clips, str(row.prompt_tokens), str(row.same_prompt), f"{row.largest:.2g}", str(row.same_greedy))
    console.print(table)
    raise typer.Exit(0 if all(row.holds for row in found) else 3)


bench = typer.Typer(no_args_is_help=True, help="Measure what parts of a finished experiment cost on this machine.")


@bench.callback()
def _group() -> None:
    """Makes `hba bench` a group of commands, though it has one."""


@bench.command()
def bam(
    spec: Annotated[Path, typer.Argument(metavar="SPEC|RUN", help="A spec with the stage bam, or the folder of a run of one.")],
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that are measured, one at a time.")] = 500,
    warm_up: Annotated[int, typer.Option(min=1, help="Rows before them that are not counted.")] = 1,
) -> None:
    """Latency and memory of a forward pass with adapters and without (Table 13)."""
    loaded = read(file_of_run(spec, RESOLVED) if spec.is_dir() else spec, overrides)
    quiet(loaded)
    from hba_ray.progress import progress
    from hba_ray.runs.cost import TABLE, check_has_adapters, measure_cost
    from hba_ray.runs.plan import plan

    check_has_adapters(loaded)
    with progress("bench bam", total=None) as bar:
        found, run = measure_cost(plan(loaded), rows, warm_up, bar.advance)
    from hba_ray.report.formats import terminal
    from hba_ray.report.paper_table import cost_sheet

    console.print(terminal(f"{loaded.name} ({loaded.model.backbone})", (cost_sheet(found),)))
    show("table", run / TABLE)
