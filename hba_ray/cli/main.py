"""The command line: parses, calls, prints. No logic, and nothing heavy imported before it is needed.

One module for each group of commands. Exit codes: 0 ok, 1 run failed, 2 bad spec or usage,
3 gate or verdict not met, 4 some trials failed, 5 environment missing, 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import signal
import sys
from typing import NoReturn

import typer

from hba_ray import __version__
from hba_ray.cli import atlas, checks, cluster, jobs, runs, specs
from hba_ray.cli.base import complaints, console
from hba_ray.errors import EnvironmentMissing, HbaError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Experiments on human behaviour, from one spec."
)
for group in (specs, runs, jobs):
    app.add_typer(group.app)
app.add_typer(atlas.app, name="atlas")
app.add_typer(cluster.app, name="cluster")
app.add_typer(runs.kept, name="runs")
app.add_typer(checks.doctor, name="doctor")
app.add_typer(checks.bench, name="bench")


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
NO_PLACE = (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""Codes of OSErrors that a full, read-only or forbidden place gives, or a file named as a folder: they end with exit code 5 and no
traceback."""

INTERRUPTED = 130


def main() -> None:
    """Entry point of `hba`: turns an HbaError into its message and its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a preempted node is an interruption
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal has no letters for is still a name
    try:
        app()
    except HbaError as error:
        _fail(error)
    except ImportError as cause:
        if cause.name is None or cause.name.partition(".")[0] == "hba_ray":
            raise
        from hba_ray.cluster.environment import lacking

        _fail(lacking(cause))
    except OSError as cause:
        if cause.errno not in (*NO_ROOM, *NO_PLACE):
            raise
        place = str(cause.filename2 or cause.filename or "output")  # a draft is renamed to the second
        _fail(EnvironmentMissing(place, f"cannot be used: {cause.strerror}", "make room, or name another place"))
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer has made this of a KeyboardInterrupt
            complaints.print("interrupted; the same command goes on from here")
        raise


def _fail(error: HbaError) -> NoReturn:
    complaints.print(f"error: {error}", style="red", soft_wrap=True)
    sys.exit(error.exit_code)


@app.command()
def version() -> None:
    """Print the version."""
    console.print(__version__)
