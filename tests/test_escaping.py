"""Text of other people does nothing on a terminal, in a spreadsheet, in Markdown and in LaTeX, and stays readable."""

import csv
import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from hba_ray.escaping import PlainConsole, csv_cell, latex_text, markdown_cell, markdown_line, plain, text_of_csv_cell, visible
from hba_ray.progress import progress
from hba_ray.report.formats import Document, terminal, to_csv, to_latex, to_markdown
from hba_ray.report.sheets import Sheet
from hba_ray.store.journal import csv_text

EVIL = "\x1b]0;title\x07[/x] [red]a[/red] :smile: \x9b31m \u202egnp.exe \r\x08"
POWERS = "\x1b\x07\x9b\u202e\r\x08"


def printed(*things: object, **settings: object) -> str:
    console = PlainConsole(file=(out := io.StringIO()), width=200, force_terminal=False)
    console.print(*things, **settings)  # type: ignore[arg-type]
    return out.getvalue()


def test_whatever_is_printed_is_shown_and_does_nothing():
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    for out in (printed(EVIL), printed(Text(EVIL)), printed(table), printed(plain(EVIL), "", sep="\n"), printed(EVIL, soft_wrap=True)):
        assert not set(out) & set(POWERS)
        assert r"\x1b]0;title" in out and r"[/x] [red]a[/red] :smile: \x9b31m \u202egnp.exe" in out


@given(st.text())
def test_no_text_has_a_control_sequence_left(text: str):
    out = printed(text, Text(text))
    assert all(" " <= sign <= "~" or sign in "\n\t" or (sign > "\x9f" and sign not in POWERS) for sign in out)
    assert visible(visible(text)) == visible(text)
    out.encode("utf-8")


def test_a_bar_shows_its_texts_and_a_terminal_gets_no_sequence_but_its_own():
    console = PlainConsole(file=(out := io.StringIO()), width=200, force_terminal=True, color_system=None)
    with progress(EVIL, total=2, console=console) as bar:
        bar.show(name="[/x]\x1b]0;t\x07")
        bar.advance()
    said = out.getvalue()
    assert "\x1b]" not in said and "\x9b" not in said and r"\x1b]0;title[/x]" in said and "name [/x]" in said
    assert "\x1b[" in said and isinstance(bar._progress, Progress)  # the bar's own movements


def test_tables_of_a_report_hold_what_people_wrote_as_text():
    sheet = Sheet(
        f"a|b {EVIL}", ("Arm", "Change"), (("=HYPERLINK(1)|`x`<b>\n[a](http://b) \\|", "-0.500"), (EVIL, "+0.100 to -0.2")), 1, (EVIL,)
    )
    document = Document(EVIL, (sheet,), "{}", (("fact", EVIL),), ("see ![x](http://y)",))
    outs = to_markdown(document), to_csv(sheet), to_latex(sheet), printed(terminal("t", [sheet], [EVIL]))
    for out in outs:
        assert not set(out) & set(POWERS)
    row = next(line for line in outs[0].splitlines() if "HYPERLINK" in line)
    assert row == "| =HYPERLINK(1)\\|\\`x\\`&lt;b&gt; [a]\\(http://b) \\\\\\| | -0.500 |"
    assert "![x]\\(http://y)" in outs[0]
    rows = list(csv.reader(io.StringIO(outs[1])))
    assert rows[1][0].startswith("'=HYPERLINK") and rows[1][1] == "-0.500" and rows[2][1] == "+0.100 to -0.2"
    assert r"\textbackslash{}x1b" in outs[2]


@given(st.sampled_from(["=", "+", "-", "@", "\t", "\r", "'", ""]), st.text(max_size=8))
def test_no_cell_is_a_formula_and_each_is_read_back(start: str, rest: str):
    cell = csv_cell(start + rest)
    assert not cell.startswith(("=", "@", "\t", "\r"))
    assert not cell.startswith(("+", "-")) or set(cell) <= set("0123456789.,eE+-% to")
    assert start == "'" or text_of_csv_cell(cell) == start + rest


def test_numbers_stay_numbers_in_every_csv():
    assert csv_text([{"a": -1, "b": "-0.5", "c": "-1e-3", "d": "=1", "e": None}]) == "a,b,c,d,e\n-1,-0.5,-1e-3,'=1,\n"
    assert [csv_cell(text) for text in ("-1+2", "-2+3+cmd|' /C calc'!A0", "+A1", "-", "@x")] == [
        "'-1+2", "'-2+3+cmd|' /C calc'!A0", "'+A1", "'-", "'@x",
    ]  # fmt: skip


def test_a_label_sheet_that_was_defused_is_read_back(tmp_path: Path):
    from hba_ray.evaluation.agreement import labels_of

    file = tmp_path / "labels.csv"
    with file.open("w", newline="") as text:
        csv.writer(text).writerows(
            [("dataset", "sample_id", "label"), (csv_cell("toy"), csv_cell("=1"), "TRUE"), ("toy", csv_cell("-a"), "no")]
        )
    assert labels_of(file, ["toy =1", "toy -a"]) == {"toy =1": True, "toy -a": False}


def test_signs_of_markdown_and_latex_are_text():
    assert markdown_line("<video> a\nb [c](d)") == "&lt;video&gt; a b [c]\\(d)"
    assert markdown_cell("toy_tone") == "toy_tone"
    assert latex_text("50% of a_b\x1b") == r"50\% of a\_b\textbackslash{}x1b"
