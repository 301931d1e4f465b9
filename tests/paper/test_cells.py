"""Every published cell of experiments/paper against a second copy, made by hand from the paper's tables (fixtures/*.csv)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from hba_ray.evaluation.published import PUBLISHED
from tests.helpers.headings import DATASETS

HERE = Path(__file__).parent
SPECS = HERE.parents[1] / "experiments" / "paper"
SFT, BAM, RL = (f"OmniSapiens-7B {name}" for name in ("SFT", "BAM", "RL"))


def paper(table: str) -> dict[str, Any]:
    (file,) = SPECS.glob(f"{table}_*.yaml")
    section = yaml.safe_load(file.read_text())["paper"]
    assert section["table"] == table
    return section


def printed(table: str) -> dict[str, dict[str, float]]:
    """Row -> column -> value; empty cells are left out."""
    with (HERE / "fixtures" / f"{table}.csv").open(newline="") as file:
        return {row.pop("row"): {name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)}


def turned(cells: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    columns = dict.fromkeys(column for row in cells.values() for column in row)
    return {column: {row: values[column] for row, values in cells.items() if column in values} for column in columns}


def by_dataset(cells: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {column: {DATASETS[row]: value for row, value in values.items()} for column, values in cells.items()}


def test_table_4_is_the_table_that_reports_show():
    published = paper("T4")["published"]
    assert {(column, row): value for column, values in published.items() for row, value in values.items()} == PUBLISHED


@pytest.mark.parametrize("table", ["T5", "T8", "T9", "T16"])
def test_tables_of_datasets(table):
    assert paper(table)["published"] == by_dataset(turned(printed(table)))


@pytest.mark.parametrize(
    ("table", "changes"),
    [
        ("T6", {BAM: ("percent", "absolute")}),
        ("T10", {BAM: ("BAM percent", "BAM absolute"), f"{BAM} (ABL)": ("ABL percent", "ABL absolute")}),
        ("T11", {f"{BAM} (256)": ("256 percent", "256 absolute"), f"{BAM} (512)": ("512 percent", "512 absolute")}),
        (
            "T12",
            {
                f"{BAM} (AUD+VIS)": ("both percent", "both absolute"),
                f"{BAM} (AUD)": ("AUD percent", "AUD absolute"),
                f"{BAM} (VIS)": ("VIS percent", "VIS absolute"),
            },
        ),
    ],
)
def test_tables_of_tasks_and_their_printed_changes(table, changes):
    section, columns = paper(table), turned(printed(table))
    assert section["published"] == {name: columns[name] for name in (SFT, *changes)}
    given = {contrast["of"]: contrast["published"] for contrast in section["contrasts"] if "published" in contrast}
    assert all(contrast["over"] == SFT for contrast in section["contrasts"] if "published" in contrast)
    assert given == {
        of: {row: [value, columns[absolute][row]] for row, value in columns[percent].items()} for of, (percent, absolute) in changes.items()
    }


def test_table_14():
    columns = turned(printed("T14"))
    expected = {}
    for name, score, rank in (
        ("Samples", "samples", "sample rank"),
        *((f"OmniSapiens-7B {n}", n, f"{n} rank") for n in ("SFT", "RL", "BAM")),
    ):
        suffixes = ("/rows", "/rows_rank") if name == "Samples" else ("", "/rank")
        expected[name] = {
            f"{DATASETS[row]}{suffix}": value
            for suffix, column in zip(suffixes, (score, rank), strict=True)
            for row, value in columns[column].items()
        }
    assert paper("T14")["published"] == expected


def test_table_15():
    (row,) = printed("T15").values()
    assert paper("T15")["published"] == {f"OmniSapiens-7B {name}": {"all/spearman": value} for name, value in row.items()}


def test_table_19():
    rows = dict(zip(("mosei_senti", "chsimsv2"), ("MOSEI", "CH-SIMS"), strict=True))
    expected = {
        model: {
            f"{row}/{measure}": values[f"{printed_row} {short}"]
            for row, printed_row in rows.items()
            for measure, short in (("weighted_f1", "F1"), ("exact_match", "accuracy"))
        }
        for model, values in printed("T19").items()
    }
    assert paper("T19")["published"] == expected


def test_table_20():
    expected = {column: {DATASETS[row]: value for row, value in values.items()} for column, values in printed("T20").items()}
    published = paper("T20")["published"]
    assert published == expected
    assert published["Rollouts = 5"] == published["lr = 5e-7"] == published["GRPO"]
    assert published["GRPO"].items() <= {row: value for (model, row), value in PUBLISHED.items() if model == RL}.items()


def test_table_13():
    assert paper("T13")["published"] == turned({f"cost/{row}": values for row, values in printed("T13").items()})


def test_table_17():
    assert paper("T17")["published"] == turned({f"answers/{row}": values for row, values in printed("T17").items()})


def test_table_18():
    assert paper("T18")["published"] == {row: {"agreement/kappa": value["kappa"]} for row, value in printed("T18").items()}


def test_tasks_are_means_of_table_4_rounded():
    """Table 6 follows from Table 4 by Figure 2's rule, so a slip in either would show; the paper truncates none of them."""
    from statistics import fmean

    from hba_ray.data.tasks import DATASETS as KNOWN

    for column, cells in paper("T6")["published"].items():
        for task, value in cells.items():
            mean = fmean(score for (model, name), score in PUBLISHED.items() if model == column and KNOWN[name].task.id == task)
            assert mean == pytest.approx(value, abs=0.0051), (column, task)


def test_what_is_printed_twice_is_the_same():
    tables = {name: paper(name)["published"] for name in ("T4", "T5", "T14", "T16")}
    for column in tables["T5"]:
        assert tables["T5"][column] == tables["T16"][column]
    for column in ("Gemma-3-4B", "HumanOmniV2-7B", "Qwen2.5-Omni-7B", "Qwen2.5-VL-7B"):
        assert tables["T16"][column].items() <= tables["T4"][column].items()
    for column in (SFT, BAM, RL):
        assert tables["T4"][column].items() <= tables["T14"][column].items()


def test_every_fixture_has_a_spec_that_is_tested():
    assert {file.stem for file in (HERE / "fixtures").glob("*.csv")} == {file.name.split("_")[0] for file in SPECS.glob("*.yaml")} - {"T4"}
