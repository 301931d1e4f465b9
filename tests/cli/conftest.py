"""The command line, run in this process."""

from __future__ import annotations

import pytest

from hba_ray.cli import main as cli


@pytest.fixture
def hba(monkeypatch, capsys, tmp_path):
    """Runs a command; gives its exit code, output and complaints."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["hba", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    monkeypatch.chdir(tmp_path)
    return run
