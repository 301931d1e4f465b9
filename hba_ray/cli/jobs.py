"""`hba submit`, `status`, `logs` and `stop`: specs as jobs on a running Ray cluster."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hba_ray.cli.base import Budget, Overrides, SpecFile, console, read, say, show
from hba_ray.errors import SpecError
from hba_ray.escaping import visible, without_colours
from hba_ray.specs import ExperimentSpec

Address = Annotated[str | None, typer.Option(help="Dashboard of the cluster, http://HOST:8265; default: RAY_API_SERVER_ADDRESS.")]
Name = Annotated[str, typer.Argument(metavar="JOB", help="As `hba submit` prints it.")]

app = typer.Typer()


@app.command()
def submit(
    spec: SpecFile,
    overrides: Overrides = None,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show what it says, and end with its exit code.")] = False,
    retries: Annotated[int, typer.Option(min=0, help="With --wait: how often it is sent again where a machine takes it with it.")] = 0,
    budget: Budget = None,
    k8s: Annotated[
        Path | None, typer.Option("--k8s", metavar="INFRA", help="Make a RayJob of it on Kubernetes, as this infra file says, by kubectl.")
    ] = None,
) -> None:
    """Send a spec to a running cluster; sent again while it runs, it is found and not doubled."""
    from hba_ray.cluster.jobs import Jobs
    from hba_ray.runs.meter import with_budget

    loaded = with_budget(read(spec, overrides), budget)
    if k8s is not None:
        options = {option for option, value in (("--address", address), ("--retries", retries)) if value}
        _submit_to_kubernetes(loaded, k8s, wait, options | {word.partition("=")[0] for word in overrides or ()})
        return
    jobs = Jobs(address)
    if not wait:
        show("job", jobs.submit(loaded, say))
        return
    sys.exit(jobs.complete(loaded, _show_text, say, retries, on_submit=partial(show, "job")).exit_code)


def _submit_to_kubernetes(spec: ExperimentSpec, file: Path, wait: bool, stated: set[str]) -> None:
    """Makes a RayJob of a spec.

    Args:
        stated: keys and options on the command line.
    """
    from hba_ray.cluster.kubernetes_jobs import BY_INFRA, KubernetesJobs
    from hba_ray.specs.infra import load_infra

    if taken := sorted(stated & BY_INFRA.keys()):
        raise SpecError(taken[0], f"has no effect on a job on Kubernetes: {BY_INFRA[taken[0]]}", "leave it out, or leave out --k8s")
    jobs = KubernetesJobs(load_infra(file), file)
    name = jobs.submit(spec)
    show("job", name)
    if wait:
        sys.exit(jobs.follow(name, _show_text))


@app.command()
def status(
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="One job; all by default.")] = None, address: Address = None
) -> None:
    """Show jobs, with what those that run have cost so far; for one that has ended, end with its exit code."""
    from rich.table import Table

    from hba_ray.cluster.jobs import Jobs

    jobs = Jobs(address)
    table = Table("job", "status", "exit code", "spent", "message", box=None, pad_edge=False)
    found = [jobs.get(job)] if job else jobs.list()
    for one in found:
        spent = jobs.spent(one.name) if job or one.exit_code is None else None
        table.add_row(one.name, one.status, "–" if one.exit_code is None else str(one.exit_code), spent or "–", one.message)
    console.print(table)
    if job and found[0].exit_code:
        sys.exit(found[0].exit_code)


@app.command()
def logs(
    job: Name, address: Address = None, follow: Annotated[bool, typer.Option("--follow", help="Until the job has ended.")] = False
) -> None:
    """Print what a job says."""
    from hba_ray.cluster.jobs import Jobs

    jobs = Jobs(address)
    if follow:
        sys.exit(jobs.follow(job, _show_text, say).exit_code)
    _show_text(jobs.logs(job))


@app.command()
def stop(job: Name, address: Address = None) -> None:
    """Stop a job; submitted again, its spec goes on where it was."""
    from hba_ray.cluster.jobs import Jobs

    console.print(f"{job}: {'was stopped' if Jobs(address).stop(job) else 'had ended already'}")


def _show_text(text: str) -> None:
    sys.stdout.write(visible(without_colours(text)))
    sys.stdout.flush()
