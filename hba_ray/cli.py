"""The command line: parses, calls, prints. No logic, and nothing heavy imported before it is needed.

Exit codes: 0 ok, 1 run failed, 2 bad spec or usage, 5 environment missing, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hba_ray import __version__
from hba_ray.errors import HbaError, SpecError
from hba_ray.specs import ExperimentSpec, load_spec

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Experiments on human behaviour, from one spec."
)
atlas_app = typer.Typer(no_args_is_help=True, help="Look at, build and check an atlas.")
app.add_typer(atlas_app, name="atlas")

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML file; shipped ones are in experiments/.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. sft.lr=1e-4.")]
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""What libraries would otherwise say between our own lines, set before they are imported."""
WIDTH = 120
"""Characters of a line where the output is no terminal."""
console = Console(width=None if sys.stdout.isatty() else WIDTH)
complaints = Console(stderr=True)


def main() -> None:
    """Entry point of `hba`: turns an HbaError into its message and its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a preempted node is an interruption
    try:
        app()
    except HbaError as error:
        complaints.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        complaints.print("interrupted; the same command goes on from here", markup=False)
        sys.exit(130)


@app.command()
def validate(spec: SpecFile, overrides: Overrides = None) -> None:
    """Check a spec; says where and what is wrong."""
    loaded = _load(spec, overrides)
    console.print(f"{spec}: valid ({loaded.name})", highlight=False, markup=False)


@app.command()
def render(spec: SpecFile, overrides: Overrides = None) -> None:
    """Print the resolved spec: extends, interpolation, overrides and defaults applied."""
    import yaml

    sys.stdout.write(yaml.safe_dump(_load(spec, overrides).identity(), sort_keys=False))


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

    loaded = _load(spec, overrides)
    table = Table("step", "fingerprint", "done", "what", "needs", box=None, pad_edge=False)
    for step in make_plan(loaded, Storage(loaded.compute.storage)):
        table.add_row(step.name, step.fingerprint, "yes" if step.is_done else "no", step.what, step.resources)
    console.print(table)


@app.command()
def run(spec: SpecFile, overrides: Overrides = None) -> None:
    """Run a spec to its end; started again, it goes on where it was."""
    loaded = _load(spec, overrides)
    for name, value in (QUIET if loaded.compute.gpus_per_worker else {**QUIET, "DS_ACCELERATOR": "cpu"}).items():
        os.environ.setdefault(name, value)
    from hba_ray.report.tables import terminal_table
    from hba_ray.sweeps.trial import run_experiment

    finished = run_experiment(loaded, lambda line: complaints.print(line, markup=False, highlight=False))
    console.print(terminal_table(finished.report))
    console.print(f"report  {finished.table}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"mlflow  {finished.mlflow}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]) -> None:
    """Print the table of a finished run."""
    from hba_ray.report.tables import read_json, terminal_table

    file = folder / "report.json"
    if not file.is_file():
        raise SpecError(str(folder), "is no finished run: it holds no report.json", "give a run folder, as `hba run` prints it")
    console.print(terminal_table(read_json(file.read_text(), where=str(file))))
    console.print(f"report  {folder / 'table.md'}", soft_wrap=True, highlight=False, markup=False)


@atlas_app.command("list")
def list_datasets() -> None:
    """The datasets that the benchmark knows."""
    from rich.table import Table

    from hba_ray.data.tasks import DATASETS

    table = Table("id", "name", "task", "metric", "train", "validation", "test", box=None, pad_edge=False)
    for dataset in DATASETS.values():
        counts = [str(count) for count in dataset.counts] if dataset.counts else ["–"] * 3
        table.add_row(dataset.id, dataset.title, dataset.task.id, dataset.task.metric, *counts)
    console.print(table)


@atlas_app.command("check")
def check_atlas(spec: SpecFile, overrides: Overrides = None) -> None:
    """Index a spec's atlas and set its counts beside Table 7; clips are not decoded."""
    from rich.table import Table

    from hba_ray.data.atlas import build_index
    from hba_ray.data.tasks import DATASETS, SPLITS

    loaded = _load(spec, overrides).atlas
    if loaded.source != "released":
        raise SpecError(
            str(spec),
            f"atlas.source is '{loaded.source}'; only files that are there can be checked",
            "give atlas.source=released atlas.root=FOLDER",
        )
    index = build_index(loaded, Path(loaded.root or ""))
    table = Table("dataset", "split", "rows", "Table 7", box=None, pad_edge=False)
    for dataset, counts in index.counts().items():
        published = DATASETS[dataset].counts or (None, None, None)
        for split, expected in zip(SPLITS, published, strict=True):
            table.add_row(dataset, split, str(counts.get(split, 0)), "–" if expected is None else str(expected))
    console.print(table)
    for drop in index.drops:
        complaints.print(f"dropped {drop.row} ({drop.dataset}): {drop.reason}", markup=False, highlight=False)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(__version__)


def _load(spec: Path, overrides: list[str] | None) -> ExperimentSpec:
    """The spec, its dataset names checked too."""
    from hba_ray.data.tasks import find_dataset

    loaded = load_spec(spec, overrides or [])
    for name in loaded.atlas.datasets or ():
        try:
            find_dataset(name)
        except HbaError as unknown:
            raise SpecError(str(spec), unknown.what, unknown.way_out) from None
    return loaded


if __name__ == "__main__":
    main()
