"""Formats of files: one place lists them, and a new one is written like the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from hba_ray.cli.runs import known_format
from hba_ray.report.formats import FORMATS, TableFormat, write_document
from hba_ray.report.paper_table import document as document_of_table
from hba_ray.report.tables import document
from hba_ray.report.verdicts import give_verdicts
from hba_ray.runs.reproduce import write_table
from tests.report.test_tables import REPORT
from tests.report.test_verdicts import column
from tests.report.test_verdicts import table as paper


def written(folder: Path) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.*"))}


def test_every_format_is_written_into_a_runs_folder(tmp_path: Path):
    made = [write_document(document(REPORT), tmp_path, name).name for name in FORMATS]
    assert made == ["table.md", "tables", "table.tex", "report.json"]
    files = written(tmp_path)
    assert files["tables/scores-per-dataset.csv"].startswith("Dataset,Arm,Task,Metric,Rows,Counted")
    assert len([name for name in files if name.endswith(".csv")]) == len(document(REPORT).sheets)
    assert all(sheet.title in files["table.md"] and sheet.title in files["table.tex"] for sheet in document(REPORT).sheets)
    assert json.loads(files["report.json"])["title"] == REPORT.title


def test_a_format_that_is_added_is_taken_by_reports_tables_and_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(typer.BadParameter, match="'shout' is none of html, markdown, csv, latex, json"):
        known_format("shout")
    monkeypatch.setitem(FORMATS, "shout", TableFormat(".txt", "loud", lambda document: document.title.upper()))
    assert known_format("shout") == "shout" and known_format("html") == "html" and known_format(None) is None
    assert write_document(document(REPORT), tmp_path, "shout").name == "loud.txt"
    found = give_verdicts(paper(), {"plain": column((60, 40))})
    files = [file.name for file in write_table(found, (), tmp_path)]
    assert files == ["T6.md", "T6.csv", "T6-differences-of-columns.csv", "T6.tex", "T6.json", "T6.txt"]
    assert (tmp_path / "T6.txt").read_text() == document_of_table(found).title.upper()
