"""Another user of this machine: runs Python under another user id, which only root can arrange."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OTHER = 65534
"""The user id of `nobody`."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def as_other(script: str, *words: str, preload: str = "os, socket, sys", environ: dict[str, str] | None = None, seconds: float = 60) -> str:
    """What a script prints that runs as another user; imports are done before, since others may not be able to read this Python.

    Args:
        words: its `sys.argv[1:]`.
        preload: modules to import.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    become = f"import {preload}\nos.setgroups([]); os.setresgid({OTHER}, {OTHER}, {OTHER}); os.setresuid({OTHER}, {OTHER}, {OTHER})\n"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", become + script, *words],
        env=kept | {"HOME": "/nowhere"} | (environ or {}),
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds,
    )
    return done.stdout
