"""The command line, run in this process."""

from __future__ import annotations

import pytest

from tests.helpers.commands import exit_code_of


@pytest.fixture
def hba(monkeypatch, capsys, tmp_path):
    """Runs a command; gives its exit code, output and complaints."""

    def run(*words: str) -> tuple[int, str, str]:
        code = exit_code_of(monkeypatch, *words)
        out, err = capsys.readouterr()
        return code, out, err

    monkeypatch.chdir(tmp_path)
    return run
