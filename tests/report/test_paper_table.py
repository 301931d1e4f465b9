"""A judged table as text: what stands beside what, in Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json

from rich.console import Console

from hba_ray.evaluation.columns import Column
from hba_ray.report.formats import terminal, to_csv, to_latex
from hba_ray.report.paper_table import outcome, render_json, render_markdown, sheets, title
from hba_ray.report.verdicts import give_verdicts
from tests.helpers.hand_made import result, rows_of
from tests.report.test_verdicts import column, table

GATES = [
    {"says": "adapters help on sarcasm", "of": "adapted", "over": ["plain"], "rows": ["mmsd"]},
    {"says": "near on sarcasm", "of": "plain", "within": 0.001, "rows": ["mmsd"]},
    {"says": "help on depression", "of": "adapted", "over": ["plain"], "rows": ["DEP"]},
]


def judged():
    paper = table(gates=GATES, differs=["one seed"], contrasts=[{"of": "adapted", "over": "plain", "published": {"mmsd": [33.3, 0.2]}}])
    return give_verdicts(paper, {"plain": column((50, 50)), "adapted": column((80, 20))})


def test_a_row_holds_measured_interval_published_difference_and_verdict():
    cells, contrasts, claims = sheets(judged(), ["sft.epochs=1 (command line)"])
    assert cells.header == ("Row", "Column", "Measured", "95% interval", "Seeds", "Published", "Difference", "Verdict")
    row = dict(zip(cells.header, cells.rows[0], strict=True))
    assert (row["Row"], row["Column"], row["Published"], row["Verdict"]) == ("mmsd", "plain", "0.600", "agrees")
    assert float(row["Difference"]) == round(float(row["Measured"]) - 0.6, 3)
    low, high = map(float, row["95% interval"].split(" to "))
    assert low < float(row["Measured"]) < high
    assert [note for note in cells.notes if note.startswith("Differs")] == ["Differs: one seed", "Differs: sft.epochs=1 (command line)"]
    assert contrasts.rows[0][-3:] == ("+0.200", "+33.30", "as published")
    assert [row[1] for row in claims.rows] == ["met", "missed", "open"]
    assert "not known: DEP" in claims.rows[2][2]


def test_at_toy_scale_published_numbers_say_whose_they_are_and_nothing_is_concluded():
    toy = {name: Column([result(rows_of("toy_words", 15, 5))], toy=True, resamples=50) for name in ("plain", "adapted")}
    found = give_verdicts(table(gates=GATES), toy)
    text = render_markdown(found)
    cells, contrasts = sheets(found)
    assert [row[-1] for row in cells.rows] == ["0.600 (mmsd)", "0.800 (mmsd)"] and [row[-2:] for row in contrasts.rows] == [("+0.200", "–")]
    assert not {"Difference", "Verdict"} & set(cells.header) and "Verdict" not in contrasts.header
    assert "Claims" not in text and "no verdict is possible" in text and "no verdict" in title(found)
    assert cells.header[:2] == ("Row", "In place of") and contrasts.header[:3] == ("Row", "In place of", "Over that of")
    assert "In brackets stands" in text
    assert outcome(found) == "no verdict: toy scale"
    assert json.loads(render_json(found))["is_met"] is None


def test_a_note_on_brackets_stands_only_where_brackets_are():
    """A tiny model on the paper's own datasets: every published number is of the row that it stands in."""
    found = give_verdicts(table(gates=GATES), {"plain": column((50, 50))}, is_toy=True)
    text = render_markdown(found)
    assert "no verdict is possible" in text and "rackets" not in text and "(mmsd)" not in text


def test_the_outcome_counts_verdicts_and_claims():
    assert outcome(judged()) == "cells: 4 agrees; 1 of 3 claims met"


def test_csv_latex_terminal_and_json_say_the_same():
    found = judged()
    sheet = sheets(found)[0]
    assert tuple(map(tuple, csv.reader(io.StringIO(to_csv(sheet))))) == (sheet.header, *sheet.rows)
    latex = to_latex(sheet)
    assert latex.count(r"\\") == len(sheet.rows) + 1 and r"95\% interval" in latex and "{llrrrrrr}" in latex
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal(title(found), sheets(found)))
    shown = console.export_text()
    assert all(cell in shown for cell in sheet.rows[0])
    facts = json.loads(render_json(found))
    assert facts["is_met"] is False and facts["cells"][0]["published"] == 0.6
    assert f"{facts['cells'][0]['estimate']['interval']['value']:.3f}" == sheet.rows[0][2]


def test_latex_survives_signs_that_mean_something_to_it():
    from hba_ray.report.sheets import Sheet

    assert r"a\_b \& 50\% \dag{} \textbackslash{} $<$x$>$" in to_latex(Sheet("t", ("h",), ((r"a_b & 50% † \ <x>",),), 1))
