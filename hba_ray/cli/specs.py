"""`hba validate`, `render`, `schema` and `plan`: look at a spec without running it."""

from __future__ import annotations

import json
import sys

import typer

from hba_ray.cli.base import Overrides, SpecFile, console, read
from hba_ray.specs import ExperimentSpec

app = typer.Typer()


@app.command()
def validate(spec: SpecFile, overrides: Overrides = None) -> None:
    """Check a spec; says where and what is wrong."""
    loaded = read(spec, overrides)
    console.print(f"{spec}: valid ({loaded.name})", highlight=False, markup=False)


@app.command()
def render(spec: SpecFile, overrides: Overrides = None) -> None:
    """Print the resolved spec: extends, interpolation, overrides and defaults applied."""
    import yaml

    sys.stdout.write(yaml.safe_dump(read(spec, overrides).identity(), sort_keys=False))


@app.command()
def schema() -> None:
    """Print the JSON schema of specs, for editors."""
    sys.stdout.write(json.dumps(ExperimentSpec.model_json_schema(), indent=2) + "\n")


@app.command()
def plan(spec: SpecFile, overrides: Overrides = None) -> None:
    """Show the steps of a spec, what is done already, and what each needs."""
    from rich.table import Table

    from hba_ray.runtime.storage import Storage
    from hba_ray.sweeps.plan import plan as make_plan

    loaded = read(spec, overrides)
    table = Table("step", "fingerprint", "done", "what", "needs", box=None, pad_edge=False)
    for step in make_plan(loaded, Storage(loaded.compute.storage)):
        table.add_row(step.name, step.fingerprint, "yes" if step.is_done else "no", step.what, step.resources)
    console.print(table)
