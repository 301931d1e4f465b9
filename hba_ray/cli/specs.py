"""`hba validate`, `render`, `schema` and `plan`: look at a spec without running it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from hba_ray.cli.base import Overrides, SpecFile, console, read
from hba_ray.escaping import plain
from hba_ray.specs import ExperimentSpec
from hba_ray.specs.load import as_yaml
from hba_ray.store.finished import first_damage

if TYPE_CHECKING:
    from rich.table import Table

    from hba_ray.steps.base import Step

app = typer.Typer()


@app.command()
def validate(spec: SpecFile, overrides: Overrides = None) -> None:
    """Check a spec; says where and what is wrong."""
    loaded = read(spec, overrides)
    console.print(f"{spec}: valid ({loaded.name})")


@app.command()
def render(spec: SpecFile, overrides: Overrides = None) -> None:
    """Print the resolved spec: extends, interpolation, overrides and defaults applied."""
    sys.stdout.write(as_yaml(read(spec, overrides)))


@app.command()
def schema() -> None:
    """Print the JSON schema of specs, for editors."""
    sys.stdout.write(json.dumps(ExperimentSpec.model_json_schema(), indent=2) + "\n")


@app.command()
def plan(spec: SpecFile, overrides: Overrides = None) -> None:
    """Show the steps of a spec, or the trials of a sweep: what is done already, what is shared, what the rest needs."""
    from hba_ray.runs.estimate import outlook
    from hba_ray.runs.plan import plan as make_plan

    loaded = read(spec, overrides)
    if loaded.sweep is not None:
        _show_sweep(loaded)
        return
    experiment = make_plan(loaded, before_data=True)
    console.print(_steps(experiment.steps), "", _facts(outlook([experiment])), sep="\n")


def _steps(steps: Sequence[Step], trials: Callable[[Step], str] | None = None) -> Table:
    """A table of steps.

    Args:
        trials: which trials need a step, in words.
    """
    from rich.table import Table

    table = Table("step", "fingerprint", *(["trials"] if trials else []), "done", "what", "needs", box=None, pad_edge=False)
    for step in steps:
        used = [trials(step)] if trials else []
        table.add_row(step.name, step.fingerprint, *used, _how_far(step), step.what, step.resources)
    return table


def _facts(said: Sequence[tuple[str, str]]) -> Table:
    """A table of words and what is said about them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for word, line in said:
        table.add_row(word, plain(line))
    return table


def _how_far(step: Step) -> str:
    if step.is_done:
        found = first_damage(step.folder)
        return "yes" if found is None else f"damaged: {found.file} {found.what}"
    return f"at {step.progress}" if step.progress else "no"


def _show_sweep(spec: ExperimentSpec) -> None:
    """Prints what a sweep comes to, then its trials, then the steps that they share."""
    from rich.table import Table

    from hba_ray.runs.estimate import estimate
    from hba_ray.runs.sweep_plan import plan_sweep
    from hba_ray.specs.trials import in_words

    swept = plan_sweep(spec, before_data=True)
    shared = swept.shared()
    known = {step.fingerprint for step in shared}
    arms = ["sets"] if spec.sweep and spec.sweep.arms else []  # their names need not say it
    table = Table("trial", *arms, "fingerprint", "done", "steps of its own, to do", box=None, pad_edge=False)
    for trial in swept.trials:
        own = [step.name for step in trial.steps if not step.is_done and step.fingerprint not in known]
        sets = [plain(", ".join(f"{key}={in_words(value)}" for key, value in trial.sets.items()) or "–")] if arms else []
        table.add_row(plain(trial.name), *sets, trial.fingerprint, "yes" if trial.report() else "no", ", ".join(own) or "–")
    console.print(plain(spec.name, "bold"), _facts(estimate(swept)), "", table, "", sep="\n")
    console.print("shared steps, done first" if shared else "no step is shared")
    if shared:
        console.print(_steps(shared, swept.users_of))
