"""A report's tables as files, in the form that a reader asks for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from hba_ray.report.base import Report
from hba_ray.report.formats import to_csv, to_latex
from hba_ray.report.tables import render_json, render_markdown, sheets
from hba_ray.runtime.storage import write_text

Form = Literal["markdown", "csv", "latex", "json"]


def write_tables(report: Report, folder: Path, form: Form) -> Path:
    """Writes all tables below a run's folder.

    Returns:
        The file; of CSV the folder, which has a file for each table.
    """
    if form == "csv":
        (folder / "tables").mkdir(exist_ok=True)
        for sheet in sheets(report):
            write_text(folder / "tables" / f"{file_name(sheet.title)}.csv", to_csv(sheet))
        return folder / "tables"
    name, text = {
        "markdown": ("table.md", lambda: render_markdown(report)),
        "latex": ("table.tex", lambda: "\n".join(map(to_latex, sheets(report)))),
        "json": ("report.json", lambda: render_json(report)),
    }[form]
    write_text(folder / name, text())
    return folder / name


def file_name(title: str) -> str:
    """
    >>> file_name("From sft without media to sft+bam")
    'from-sft-without-media-to-sft+bam'
    """
    return re.sub(r"[^a-z0-9+]+", "-", title.lower()).strip("-")
