"""Text of other people where some signs have powers: on terminals, in CSV files that spreadsheets open, in Markdown and LaTeX.

A name, a path, an error or an answer may hold anything. Whoever prints it goes through `PlainConsole` or `visible`, and whoever
writes it into a table through `csv_cell`, `markdown_cell` or `latex_text`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks that turn the direction of letters, line ends of Unicode, and half characters."""
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_NUMBER = r"[+-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?: ?%)?"
_NUMBERS = re.compile(rf"{_NUMBER}(?: to {_NUMBER})?")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
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


def visible(text: str) -> str:
    r"""A text in which control characters are written out, so that a terminal shows them and does nothing.

    >>> visible("a\x1b]0;title\x07\tb")
    'a\\x1b]0;title\\x07\tb'
    """
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def without_colours(text: str) -> str:
    r"""A text without the sequences that colour it on a terminal.

    >>> without_colours("\x1b[36m(worker)\x1b[0m ready")
    '(worker) ready'
    """
    return _COLOURS.sub("", text)


class PlainConsole(Console):
    """A console of rich that shows text as it is: nothing in it is markup, an emoji or a control sequence."""

    def __init__(self, **settings: Any):
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """A text as rich shows it, with room for what `visible` writes out."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of what is printed. All that is printed comes through here; sequences of rich's own are no text."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else piece._replace(text=visible(piece.text))


def plain(text: str, style: str = "") -> Text:
    """A text for a table or a group of rich, with control characters written out."""
    return Text(visible(text), style=style)


def csv_cell(value: Any) -> Any:
    """A value for a CSV file that a spreadsheet may open. A text that would be taken for a formula gets an apostrophe in front, which
    spreadsheets hide (OWASP, CSV injection); numbers stay numbers.

    >>> [csv_cell(value) for value in ("=1+1", "-0.5", "+3 %", "-1.5 to +2", "-x", 7)]
    ["'=1+1", '-0.5', '+3 %', '-1.5 to +2', "'-x", 7]
    """
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS) and not _NUMBERS.fullmatch(value):
        return f"'{value}"
    return value


def text_of_csv_cell(cell: str) -> str:
    """The text that `csv_cell` was given.

    >>> text_of_csv_cell("'=1+1"), text_of_csv_cell("'tis")
    ('=1+1', "'tis")
    """
    return cell[1:] if cell.startswith("'") and csv_cell(cell[1:]) == cell else cell


def markdown_line(text: str) -> str:
    """One line of Markdown, in which `<video>` is text and no tag, and `[a](b)` no link and no image."""
    return escape(visible(" ".join(text.split())), quote=False).replace("](", "]\\(")


def markdown_cell(text: str) -> str:
    r"""A cell of a Markdown table.

    >>> markdown_cell("a|b `c`\n<d>")
    'a\\|b \\`c\\` &lt;d&gt;'
    """
    return re.sub(r"([\\|`])", r"\\\1", escape(visible(" ".join(text.split())), quote=False)).replace("](", "]\\(")


def latex_text(text: str) -> str:
    """A text in LaTeX, on one line, in which no sign is a command."""
    return "".join(_LATEX.get(char, char) for char in visible(" ".join(text.split())))
