"""What all commands share: the two consoles, how a spec is named and read, and libraries told to be quiet."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated

import typer

from hba_ray.errors import HbaError, SpecError
from hba_ray.escaping import PlainConsole
from hba_ray.specs import ExperimentSpec, load_spec
from hba_ray.specs.load import spec_of_atlas
from hba_ray.store.scratch import folder_here

if TYPE_CHECKING:
    from hba_ray.report.sheets import Sheet

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML file; shipped ones are in experiments/.")]
AtlasOrSpec = Annotated[Path, typer.Argument(metavar="ATLAS_OR_SPEC", help="A folder of parquet or jsonl files, or a YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. sft.lr=1e-4.")]
Budget = Annotated[
    str | None, typer.Option(metavar="AMOUNT", help="Of a sweep, as 20gpuh or 300usd: start no more trials once it is spent.")
]
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "MLFLOW_DISABLE_TELEMETRY": "true"}
"""What libraries would otherwise say between our own lines, set before they are imported."""
WIDTH = 120
"""Characters of a line where the output is no terminal."""
for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # closed by who started us
        setattr(sys, _name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
console = PlainConsole(width=None if sys.stdout.isatty() else WIDTH)
complaints = PlainConsole(stderr=True, width=None if sys.stderr.isatty() else WIDTH)


def run_folder(text: str) -> Path:
    """The folder of a run, from its path or, where its storage is in a bucket, from its address."""
    storage, _, name = text.rstrip("/").rpartition("/")
    return folder_here(storage) / name if "://" in text else Path(text)


RUN = typer.Argument(metavar="RUN", parser=run_folder, help="Folder of a run, as `hba run` prints it, or its address in a bucket.")


def say(line: str) -> None:
    """Prints a line about the work to standard error; standard output is for results."""
    complaints.print(line)


def show(label: str, value: object) -> None:
    """Prints a labelled result, such as a path, on one line."""
    console.print(f"{label}  {value}", soft_wrap=True)


def show_sheet(sheet: Sheet) -> None:
    """Prints a table of text under its title."""
    from rich.table import Table

    table = Table(title=sheet.title, title_justify="left", box=None, pad_edge=False)
    for place, name in enumerate(sheet.header):
        table.add_column(name, justify="right" if place >= sheet.numbers_from else "left", overflow="fold")
    for row in sheet.rows:
        table.add_row(*row)
    console.print(table, *sheet.notes, "", sep="\n")


def quiet(spec: ExperimentSpec) -> None:
    """Sets the variables that keep libraries quiet; call it before they are imported."""
    for name, value in (QUIET if spec.compute.gpus_per_worker else {**QUIET, "DS_ACCELERATOR": "cpu"}).items():
        os.environ.setdefault(name, value)


def read(spec: Path, overrides: list[str] | None) -> ExperimentSpec:
    """Reads a spec, checks the names of its datasets and the files of prompts that it names; a folder stands for a spec of its atlas."""
    from hba_ray.data.tasks import find_dataset

    loaded = (spec_of_atlas if spec.is_dir() else load_spec)(spec, overrides or [])
    lists = {
        "atlas.datasets": loaded.atlas.datasets or (),
        "atlas.held_out": loaded.atlas.held_out,
        "atlas.train_also": loaded.atlas.train_also,
        **{f"atlas.sources.{number}.datasets": part.datasets or () for number, part in enumerate(loaded.atlas.sources)},
        "bam.checkpoints": loaded.bam.checkpoints,
    }
    for key, names in lists.items():
        known: dict[str, str] = {}
        for name in names:
            try:
                dataset = find_dataset(name).id
            except HbaError as unknown:
                raise SpecError(f"{spec}: {key}", unknown.what, unknown.way_out) from None
            if dataset in known:
                raise SpecError(f"{spec}: {key}", f"'{known[dataset]}' and '{name}' are one dataset, {dataset}", "name it once")
            known[dataset] = name
    _check_prompts(loaded)
    return loaded


def _check_prompts(spec: ExperimentSpec) -> None:
    """Reads the files of prompts that a spec names in place of those that are built in.

    Raises:
        SpecError: one is not there or not in order.
    """
    named = {
        "hba_ray.convert.wording:load_prompts": spec.atlas.prompts,
        "hba_ray.judge.prompts:load_prompts": spec.evaluate.judge.prompts if spec.evaluate.judge else "",
        "hba_ray.data.prompts:load_reasoning": spec.grpo.prompts,
    }
    for reader, name in named.items():
        if Path(name).suffix:  # words that are built in have none
            resolve_name(reader)(name)
