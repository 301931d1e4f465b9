"""What Ray 2.60 offers under private names only, in one file, so that an upgrade of Ray is checked in one place.

(`forkable.py` uses `ray._raylet` beside this: it runs as a script, where this package may not be installed.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def use_token() -> None:
    """Lets this process show its token to a cluster that asks for one, as `ray start` and `ray job submit` do and `ray.init` does not."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextmanager
def own_token(write: Callable[[], Path]) -> Iterator[None]:
    """For the time of the block, a Ray that is started asks for a token of its own; Ray's default is one for all, in `~/.ray`.

    What the user has set counts: RAY_AUTH_MODE, RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH.

    Args:
        write: makes the file of the token.
    """
    from ray._private.authentication import authentication_token_setup

    native: Any = authentication_token_setup  # what it imports from Ray's core has no types
    names = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    if names & os.environ.keys():
        yield
        return
    try:
        with _set(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(write())):
            _read_again(native)
            yield
    finally:
        _read_again(native)


@contextmanager
def on_loopback() -> Iterator[None]:
    """For the time of the block, the services of a Ray that is started listen on the loopback, as they do on macOS, and nowhere else.

    Ray takes 127.0.0.1 as the address of a node only where it believes that no cluster can be; else it looks for one of the network.
    """
    from ray._private import ray_constants

    before, variable = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    ray_constants.ENABLE_RAY_CLUSTER = False
    with _set(**{variable: "0"}):
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _set(**variables: str) -> Iterator[None]:
    """Environment variables for the time of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _read_again(native: Any) -> None:
    """Has Ray's core read the variables again, which it remembers."""
    native.Config.initialize("")
    native.AuthenticationTokenLoader.instance().reset_cache()


def living_actors() -> set[str]:
    """Ids of the actors that are not dead. The head is asked: `ray.util.state` asks the dashboard, which Ctrl-C may have ended."""
    from ray._private.state import actors

    return {name for name, facts in actors().items() if facts["State"] != "DEAD"}


def upload_modules(packages: Sequence[Path]) -> list[str]:
    """Addresses under which Ray unpacks Python packages where a process of another environment starts.

    `ray.init(runtime_env=...)` does so for a whole job, and for single processes nothing does.
    """
    from ray._private.runtime_env.py_modules import upload_py_modules_if_needed

    wanted = {"py_modules": [str(package) for package in packages], "excludes": ["**/__pycache__"]}
    with TemporaryDirectory() as scratch:
        return upload_py_modules_if_needed(wanted, include_gitignore=False, scratch_dir=scratch)["py_modules"]


@contextmanager
def raylet_reports(take: Callable[[Sequence[str]], None]) -> Iterator[None]:
    """For the time of the block, hands the lines that raylets report to `take`; Ray prints them, whatever `log_to_driver` says."""
    from ray._private import worker

    def report(facts: dict[str, Any], ignore_prefix: bool = False) -> None:
        take(facts["lines"])

    prints, worker.print_to_stdstream = worker.print_to_stdstream, report
    try:
        yield
    finally:
        worker.print_to_stdstream = prints


def cluster_file_defects(config: dict[str, Any]) -> list[str]:
    """What `ray up` would refuse in a cluster's file, by its own schema and with its defaults filled in; no cloud is asked."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except jsonschema.ValidationError as cause:
        return [f"{'.'.join(map(str, cause.absolute_path)) or 'file'}: {cause.message}"]
    except (ValueError, KeyError, TypeError) as cause:
        return [f"Ray refuses it: {type(cause).__name__} {cause}"]
    return []
