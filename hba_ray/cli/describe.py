"""`hba describe`: the behavioural descriptors of an atlas, extracted and kept."""

from __future__ import annotations

import typer

from hba_ray.cli.base import AtlasOrSpec, Overrides, console, quiet, read, say, show

app = typer.Typer()


@app.command()
def describe(atlas: AtlasOrSpec, overrides: Overrides = None) -> None:
    """Extract pose, acoustic and transcript descriptors of an atlas; started again, it goes on where it was."""
    loaded = read(atlas, overrides)
    quiet(loaded)
    from rich.table import Table

    from hba_ray.runtime.storage import Storage
    from hba_ray.sweeps.describing import describe_atlas, with_streams

    summary = describe_atlas(with_streams(loaded), say)
    table = Table("stream", "rows", "described", "no clip", "masked", "clips", "extracted now", "seconds", box=None, pad_edge=False)
    for stream, found in summary["streams"].items():
        masked = ", ".join(f"{reason}: {rows}" for reason, rows in found["bad"].items()) or "0"
        counts = (str(found[name]) for name in ("clips", "extracted"))
        table.add_row(stream, str(found["rows"]), str(found["described"]), str(found["absent"]), masked, *counts, f"{found['seconds']:.1f}")
    console.print(table)
    for reason, rows in summary["unreadable"].items():
        say(f"{rows} rows could not be read: {reason}")
    show("descriptors", Storage(loaded.compute.storage).descriptors)
