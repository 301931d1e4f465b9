"""Sheets as Markdown, CSV, LaTeX and tables for the terminal: the same text in all of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from html import escape

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hba_ray.report.base import Sheet

_LATEX = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "†": r"\dag{}",
    "<": "$<$",
    ">": "$>$",
}


def markdown(sheet: Sheet) -> str:
    """A heading, the table, and its notes, as GitHub-flavoured Markdown."""
    return "\n\n".join((f"## {line(sheet.title)}", markdown_table(sheet) if sheet.rows else "None.", *map(line, sheet.notes)))


def markdown_table(sheet: Sheet) -> str:
    rule = ["---:" if place >= sheet.numbers_from else "---" for place in range(len(sheet.header))]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (sheet.header, rule, *sheet.rows))


def terminal(title: str, sheets: Iterable[Sheet]) -> RenderableType:
    """The sheets under a title, for a rich console; notes that several share are said once."""
    sheets = tuple(sheets)
    shown: list[RenderableType] = [Text(title, style="bold")]
    for sheet in sheets:
        table = Table(title=Text(sheet.title), title_justify="left", box=box.SIMPLE)
        for place, name in enumerate(sheet.header):
            table.add_column(Text(name), justify="right" if place >= sheet.numbers_from else "left")
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        shown.append(table)
    notes = dict.fromkeys(note for sheet in sheets for note in sheet.notes)
    return Group(*shown, *(Text(note, style="dim") for note in notes))


def to_csv(sheet: Sheet) -> str:
    """
    >>> to_csv(Sheet("s", ("Row", "Score"), (("a, b", "0.5"),), 1))
    'Row,Score\\n"a, b",0.5\\n'
    """
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows((sheet.header, *sheet.rows))
    return file.getvalue()


def to_latex(sheet: Sheet) -> str:
    """A `tabular` in the style of booktabs, with the title as caption and the notes below it."""
    columns = "l" * sheet.numbers_from + "r" * (len(sheet.header) - sheet.numbers_from)
    rows = [" & ".join(map(_latex, row)) + r" \\" for row in (sheet.header, *sheet.rows)]
    table = "\n".join((rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"))
    notes = "".join(f"\n\n\\footnotesize {_latex(note)}" for note in sheet.notes)
    return f"\\begin{{table}}\n\\caption{{{_latex(sheet.title)}}}\n{table}{notes}\n\\end{{table}}\n"


def line(text: str) -> str:
    """One line of Markdown in which `<video>` is text and not a tag."""
    return escape(" ".join(text.split()), quote=False)


def _cell(text: str) -> str:
    return line(text).replace("|", "\\|")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))
