"""Verdicts on cells, differences and claims, from predictions made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from hba_ray.errors import SpecError
from hba_ray.evaluation.columns import Column
from hba_ray.report.verdicts import TableVerdict, check_rows, give_verdicts, toy_row
from hba_ray.specs import PaperSpec
from tests.helpers.hand_made import result, rows_of


def table(**changes: Any) -> PaperSpec:
    """Two datasets by two columns; the second is published as the better one."""
    raw: dict[str, Any] = {
        "table": "T6",
        "title": "adapters",
        "published": {"plain": {"mmsd": 0.60, "urfunny": 0.70}, "adapted": {"mmsd": 0.80, "urfunny": 0.71}},
        "arms": {"plain": {"arm": "sft"}, "adapted": {"arm": "sft+bam"}},
        "contrasts": [{"of": "adapted", "over": "plain"}],
    }
    return PaperSpec.model_validate(raw | changes)


def column(mmsd: tuple[int, int], urfunny: tuple[int, int] = (70, 30), **more: Any) -> Column:
    return Column([result(rows_of("mmsd", *mmsd) + rows_of("urfunny", *urfunny), **more)], resamples=400)


def verdicts(found: TableVerdict) -> dict[tuple[str, str], str]:
    return {(cell.row, cell.column): cell.verdict for cell in found.cells}


def test_a_cell_agrees_where_the_published_value_lies_in_our_interval():
    found = give_verdicts(table(), {"plain": column((60, 40)), "adapted": column((95, 5))})
    assert verdicts(found)["mmsd", "plain"] == "agrees"
    assert verdicts(found)["mmsd", "adapted"] == "higher"
    worse = give_verdicts(table(), {"plain": column((30, 70))})
    assert verdicts(worse)["mmsd", "plain"] == "lower"
    assert verdicts(worse)["mmsd", "adapted"] == "not measured here"


def test_a_printed_value_is_known_to_half_a_unit_of_its_last_digit():
    cells = {"plain": {"mmsd": 0.99}, "adapted": {"mmsd": 0.8}}
    columns = {"plain": Column([result(rows_of("mmsd", 200, 0))], resamples=50)}
    assert verdicts(give_verdicts(table(published=cells, digits=3), columns))["mmsd", "plain"] == "higher"
    assert verdicts(give_verdicts(table(published=cells, digits=1), columns))["mmsd", "plain"] == "agrees"


def test_a_task_of_which_a_dataset_is_absent_gets_no_verdict():
    paper = table(published={"plain": {"DEP": 0.7, "SOC": 0.3}, "adapted": {"DEP": 0.7}}, contrasts=[])
    measured = Column([result(rows_of("daicwoz", 7, 3) + rows_of("siq2", 3, 7))], resamples=50)
    found = give_verdicts(paper, {"plain": measured})
    assert verdicts(found)["DEP", "plain"] == "partial: 1 of 2 datasets"
    assert verdicts(found)["SOC", "plain"] == "not judged"
    assert all(cell.difference is None for cell in found.cells)


@pytest.mark.parametrize(
    ("plain", "adapted", "verdict"),
    [
        ((50, 50), (80, 20), "as published"),
        ((80, 20), (50, 50), "opposite"),
        ((60, 40), (60, 40), "not found"),
        ((6, 4), (7, 3), "cannot be resolved here"),
    ],
)
def test_a_difference_is_judged_by_a_paired_test_and_by_what_the_rows_can_show(plain, adapted, verdict):
    columns = {"plain": column(plain), "adapted": column(adapted)}
    found = give_verdicts(table(), columns)
    (contrast,) = [one for one in found.contrasts if one.row == "mmsd"]
    assert contrast.verdict == verdict
    assert contrast.published == pytest.approx(0.2) and contrast.percent is None
    assert contrast.p_adjusted is not None and contrast.comparison.p_value is not None
    assert contrast.p_adjusted >= contrast.comparison.p_value


def test_the_papers_own_small_difference_cannot_be_resolved_by_a_small_test_set():
    found = give_verdicts(table(), {"plain": column((60, 40), (150, 74)), "adapted": column((60, 40), (152, 72))})
    (contrast,) = [one for one in found.contrasts if one.row == "urfunny"]
    assert contrast.verdict == "cannot be resolved here"
    assert contrast.comparison.detectable is not None and contrast.comparison.detectable > 0.01


def test_a_printed_change_counts_and_not_the_difference_of_rounded_cells():
    changed = table(contrasts=[{"of": "adapted", "over": "plain", "published": {"mmsd": [-33.0, -0.2]}}])
    found = give_verdicts(changed, {"plain": column((50, 50)), "adapted": column((80, 20))})
    (contrast,) = [one for one in found.contrasts if one.row == "mmsd"]
    assert (contrast.published, contrast.percent, contrast.verdict) == (-0.2, -33.0, "opposite")


def gate(**fields: Any) -> dict[str, Any]:
    return {"says": "adapters help", "of": "adapted"} | fields


@pytest.mark.parametrize(
    ("fields", "met"),
    [
        ({"over": ["plain"], "rows": ["mmsd"]}, True),
        ({"over": ["plain"], "rows": ["SAR"]}, True),
        ({"over": ["plain"]}, False),
        ({"over": ["plain"], "at_least": 1}, True),
        ({"over": ["plain"], "significant": False}, True),
        ({"within": 0.05, "rows": ["mmsd"]}, True),
        ({"within": 0.05}, True),
        ({"within": 0.0001}, False),
        ({"over": ["plain"], "rows": ["mmsd", "DEP"]}, None),
        ({"over": ["plain"], "rows": ["mmsd", "DEP"], "at_least": 1}, True),
    ],
)
def test_a_claim_is_met_missed_or_open(fields, met):
    columns = {"plain": column((50, 50), (70, 30)), "adapted": column((80, 20), (72, 28))}
    found = give_verdicts(table(gates=[gate(**fields)]), columns)
    assert found.gates[0].met is met
    assert found.is_met is (met is True)


def test_at_toy_scale_rows_stand_for_their_tasks_and_no_verdict_is_given():
    toy = {
        name: Column([result(rows_of("toy_words", right, 20 - right))], toy=True, resamples=50)
        for name, right in (("plain", 10), ("adapted", 19))
    }
    found = give_verdicts(table(gates=[gate(over=["plain"])]), toy)
    assert found.is_toy and found.gates == () and found.is_met
    assert {cell.row for cell in found.cells} == {"toy_words"}
    assert [(cell.column, cell.published, cell.published_row, cell.difference) for cell in found.cells] == [
        (name, rows["mmsd"], "mmsd", None) for name, rows in table().published.items()
    ]
    assert {cell.verdict for cell in found.cells} == {"no verdict"}
    assert [contrast.verdict for contrast in found.contrasts] == ["no verdict"]
    assert found.contrasts[0].comparison.difference.value == pytest.approx(0.45, abs=0.01)


def test_a_tiny_model_on_real_rows_gives_no_verdict_either():
    found = give_verdicts(table(), {"plain": column((60, 40)), "adapted": column((60, 40))}, is_toy=True)
    assert {cell.verdict for cell in found.cells} == {"no verdict"}
    assert {cell.row for cell in found.cells} == {"mmsd", "urfunny"}


def test_rows_without_a_toy_dataset_are_left_out():
    assert toy_row("daicwoz") is None and toy_row("tess/rank") == "toy_tone/rank" and toy_row("all/spearman") == "all/spearman"


@pytest.mark.parametrize(
    ("row", "says"), [("mmsdd", "did you mean 'mmsd'"), ("mustard", "did you mean 'mmsd'"), ("mmsd/f1", "no measure 'f1'")]
)
def test_a_row_that_could_never_be_measured_is_refused(row, says):
    with pytest.raises(SpecError, match=says) as refused:
        check_rows(table(published={"plain": {row: 0.5}, "adapted": {}}, contrasts=[]), "table.yaml")
    assert refused.value.where == "table.yaml"
