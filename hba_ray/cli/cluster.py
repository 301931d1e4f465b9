"""`hba cluster render`, `check`, `prepare`, `wait`: files that start a cluster, from one infra file, its image, and waiting for nodes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hba_ray.cli.base import console, say, show
from hba_ray.errors import SpecError
from hba_ray.specs.infra import Target

app = typer.Typer(no_args_is_help=True, help="Files that start a cluster.")

InfraFile = Annotated[Path, typer.Argument(metavar="INFRA", help="A YAML file; clusters/infra.yaml is one.")]
Place = Annotated[Target, typer.Argument(help="Where the cluster is.")]


@app.command("render")
def render_file(
    target: Place,
    infra: InfraFile,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Its name; aws.yaml, gcp.yaml and so on by default.")] = None,
) -> None:
    """Write the file that starts a cluster: for `ray up`, `kubectl apply` or `sbatch`."""
    from hba_ray.cluster.render.blanks import blanks
    from hba_ray.cluster.render.check import FILES, render
    from hba_ray.specs.infra import load_infra
    from hba_ray.store.folders import write_text

    text, file = render(load_infra(infra), target), to or Path(FILES[target])
    if file.resolve() == infra.resolve():
        raise SpecError(str(file), "is the infra file itself", "give another name by --to")
    if not file.parent.is_dir():
        raise SpecError(str(file), f"there is no folder {file.parent}", "make it, or give another name by --to")
    write_text(file, text)
    show("file", file)
    if left := blanks(text):
        say(f"{len(left)} of its values are blank, since {infra} does not give them: hba cluster check {target} {infra}")


@app.command("check")
def check_file(target: Place, infra: InfraFile) -> None:
    """Check what would be rendered, without a cloud, and name what is still to be filled in; ends with 2 where anything is."""
    from hba_ray.cluster.render.blanks import blanks
    from hba_ray.cluster.render.check import FILES, problems, render
    from hba_ray.specs.infra import load_infra

    text = render(load_infra(infra), target)
    wrong, left = problems(target, text), blanks(text)
    for sentence in wrong:
        console.print(f"wrong  {FILES[target]}: {sentence}")
    for blank in left:
        console.print(f"to be filled in  {blank.key}: {blank.what}")
    if wrong or left:
        sys.exit(2)
    console.print(f"{FILES[target]} is sound, and nothing is left to fill in")


@app.command("prepare")
def prepare(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where environments go.")]) -> None:
    """Build the environments of extractors that this one cannot hold, as the image of nodes does."""
    from hba_ray.descriptors.environments import ENVIRONMENTS, build

    for stream, environment in ENVIRONMENTS.items():
        if environment.is_here:
            console.print(f"{stream}: {environment.requirement} is here")
        else:
            show(stream, build(stream, folder.absolute()))


@app.command("wait")
def wait(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Of the head.")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that have to be there, the head among them.")] = 1,
    seconds: Annotated[float, typer.Option(min=0, help="How long to wait.")] = 300,
) -> None:
    """Wait until a Ray cluster is there, with all of its nodes; ends with 5 where it is not."""
    from hba_ray.cluster.waiting import wait_for_nodes

    wait_for_nodes(address, nodes, seconds, say)
