"""`hba` in this process, as from a shell."""

from __future__ import annotations

import pytest

from hba_ray.cli import main as cli


def exit_code_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Runs a command; what it says goes to this process's streams."""
    monkeypatch.setattr("sys.argv", ["hba", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0
