"""The formats in which tables are written to files: Markdown, CSV, LaTeX and JSON; and the tables of the terminal.

A document (the report of a run, or a table of the paper) is the same text in all of them. To add a format, write a
function from a document to its text and name it in `FORMATS`: `hba report --format` and `hba reproduce` take it from there.
This module is light, since the command line lists the formats before it knows what it is asked to do.
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hba_ray.escaping import csv_cell, latex_text, markdown_cell, markdown_line, plain, visible
from hba_ray.report.sheets import MISSING, Sheet, with_columns
from hba_ray.store.folders import write_text

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Document:
    """What formats write.

    Attributes:
        json: all numbers with all their digits, as JSON text for programs.
        facts: name -> text, listed under the title.
        notes: paragraphs for the end.
    """

    title: str
    sheets: tuple[Sheet, ...]
    json: str
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableFormat:
    """A format of files.

    Attributes:
        suffix: of its files, with the dot.
        name: of the file in a run's folder, without suffix; of the folder in it, where each sheet has a file of its own.
        write: gives the text of a document.
        a_file_a_sheet: whether a file holds one sheet; `write` then takes the first of the document.
    """

    suffix: str
    name: str
    write: Callable[[Document], str]
    a_file_a_sheet: bool = False


def write_document(document: Document, folder: Path, format: str) -> Path:
    """Writes a document into a run's folder.

    Args:
        format: a name of `FORMATS`.

    Returns:
        The file; where each sheet has a file of its own, their folder.
    """
    form = FORMATS[format]
    if not form.a_file_a_sheet:
        file = folder / f"{form.name}{form.suffix}"
        write_text(file, form.write(document))
        return file
    (folder / form.name).mkdir(exist_ok=True)
    for sheet in document.sheets:
        write_text(folder / form.name / f"{file_name(sheet.title)}{form.suffix}", form.write(replace(document, sheets=(sheet,))))
    return folder / form.name


def write_named(document: Document, folder: Path, name: str) -> Iterator[Path]:
    """Writes a document in all formats, into files of one name; gives the files.

    Where a format has a file a sheet, the first sheet has this name, and those behind it are named by it and their titles.
    """
    for form in FORMATS.values():
        for place, sheet in enumerate(document.sheets if form.a_file_a_sheet else document.sheets[:1]):
            file = folder / f"{name}{f'-{file_name(sheet.title)}' if place else ''}{form.suffix}"
            write_text(file, form.write(replace(document, sheets=(sheet,)) if form.a_file_a_sheet else document))
            yield file


def file_name(title: str) -> str:
    """
    >>> file_name("From sft without media to sft+bam")
    'from-sft-without-media-to-sft+bam'
    """
    return re.sub(r"[^a-z0-9+]+", "-", title.lower()).strip("-")


def to_markdown(document: Document) -> str:
    """The whole document as GitHub-flavoured Markdown."""
    parts = [f"# {markdown_line(document.title)}"]
    if document.facts:
        parts.append("\n".join(f"- {name}: {markdown_line(value)}" for name, value in document.facts))
    parts += map(markdown, document.sheets)
    if document.notes:
        parts += ["## Notes", "\n".join(f"- {markdown_line(note)}" for note in document.notes)]
    return "\n\n".join(parts) + "\n"


def markdown(sheet: Sheet) -> str:
    """A heading, the table, and its notes, as GitHub-flavoured Markdown."""
    return "\n\n".join(
        (f"## {markdown_line(sheet.title)}", markdown_table(sheet) if sheet.rows else "None.", *map(markdown_line, sheet.notes))
    )


def markdown_table(sheet: Sheet) -> str:
    rule = ["---:" if place >= sheet.numbers_from else "---" for place in range(len(sheet.header))]
    return "\n".join("| " + " | ".join(map(markdown_cell, row)) + " |" for row in (sheet.header, rule, *sheet.rows))


def to_csv(sheet: Sheet) -> str:
    """
    >>> to_csv(Sheet("s", ("Row", "Score"), (("a, b", "0.5"),), 1))
    'Row,Score\\n"a, b",0.5\\n'
    """
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([csv_cell(visible(cell)) for cell in row] for row in (sheet.header, *sheet.rows))
    return file.getvalue()


def to_latex(sheet: Sheet) -> str:
    """A `tabular` in the style of booktabs, with the title as caption and the notes below it."""
    columns = "l" * sheet.numbers_from + "r" * (len(sheet.header) - sheet.numbers_from)
    rows = [" & ".join(map(latex_text, row)) + r" \\" for row in (sheet.header, *sheet.rows)]
    table = "\n".join((rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"))
    notes = "".join(f"\n\n\\footnotesize {latex_text(note)}" for note in sheet.notes)
    return f"\\begin{{table}}\n\\caption{{{latex_text(sheet.title)}}}\n{table}{notes}\n\\end{{table}}\n"


FORMATS: dict[str, TableFormat] = {
    "markdown": TableFormat(".md", "table", to_markdown),
    "csv": TableFormat(".csv", "tables", lambda document: to_csv(document.sheets[0]), a_file_a_sheet=True),
    "latex": TableFormat(".tex", "table", lambda document: "\n".join(map(to_latex, document.sheets))),
    "json": TableFormat(".json", "report", lambda document: document.json),
}
"""Name, as `hba report --format` takes it -> format."""


def terminal(title: str, sheets: Iterable[Sheet], remarks: Iterable[str] = ()) -> RenderableType:
    """The sheets under a title, for a rich console; notes that several share are said once, and remarks last.

    A screen is narrow: columns that say nothing are left out, headings take several lines, and where a table is
    still too wide, words wrap and numbers do not.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table

    sheets = tuple(map(narrowed, sheets))
    shown: list[RenderableType] = [plain(title, "bold")]
    for sheet in sheets:
        table = Table(title=plain(sheet.title), title_justify="left", box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        for place, name in enumerate(sheet.header):
            is_number = place >= sheet.numbers_from
            widest = max([len(row[place]) for row in sheet.rows], default=len(name))
            table.add_column(plain(_heading(name, widest)), justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
        for row in sheet.rows:
            table.add_row(*map(plain, row))
        shown.append(table)
    notes = dict.fromkeys(note for sheet in sheets for note in sheet.notes)
    return Group(*shown, *(plain(note, "dim") for note in notes), *map(plain, remarks))


def narrowed(sheet: Sheet) -> Sheet:
    """The sheet without columns of numbers in which every number is missing, or that repeat the column before them, and
    without the notes on them.

    >>> narrowed(Sheet("s", ("Row", "Rows", "Counted", "Published"), (("a", "5", "5", "–"), ("b", "7", "7", "–")), 1)).header
    ('Row', 'Rows')
    """
    cells = list(zip(*sheet.rows, strict=True))
    numbers = range(sheet.numbers_from, len(cells))
    empty = {place for place in numbers if set(cells[place]) == {MISSING}}
    repeated = {place for place in numbers[1:] if cells[place] == cells[place - 1]}
    kept = [place for place in range(len(sheet.header)) if place not in empty | repeated]
    subjects = {name.split(" ")[0] for name in sheet.header} - {sheet.header[place].split(" ")[0] for place in kept}
    return replace(with_columns(sheet, kept), notes=tuple(note for note in sheet.notes if note.partition(":")[0] not in subjects))


def _heading(name: str, widest: int) -> str:
    """A heading on several lines where it is wider than its column."""
    longest = max(map(len, name.split()), default=1)
    return "\n".join(textwrap.wrap(name, max(widest, longest), break_long_words=False))
