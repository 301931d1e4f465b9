"""Two arms are aligned by row, and their differences are listed in the order in which a reader wants them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from hba_ray.data.predictions import SCHEMA
from hba_ray.errors import DataError
from hba_ray.evaluation.pairs import ArmRows, differences, differing_rows, pair_rows
from tests.helpers.own_data import sensitive_questions


def table(*rows: tuple[str, str, str | None], dataset: str = "mmsd") -> pa.Table:
    """(sample, truth, prediction), each of its own clip."""
    column = "answer" if dataset == "mimeqa" else "predicted"
    return pa.Table.from_pylist(
        [
            {"sample_id": name, "clip_id": f"clip {name}", "dataset": dataset, "task": "SAR", "true": true, column: guess}
            for name, true, guess in rows
        ],
        schema=SCHEMA,
    )


def test_rows_are_paired_by_name_whatever_their_order():
    first = table(("a", "sarcasm", "sarcasm"), ("b", "sarcasm", None), ("c", "sarcasm", "sarcasm"))
    second = table(("c", "sarcasm", "not sarcasm"), ("a", "sarcasm", "sarcasm"), ("z", "sarcasm", "sarcasm"))
    rows = pair_rows(first, second)
    assert [(row.sample_id, row.clip_id, row.first, row.second) for row in rows] == [
        ("a", "clip a", "sarcasm", "sarcasm"),
        ("c", "clip c", "sarcasm", "not sarcasm"),
    ]


def test_gains_come_first_then_losses_then_other_differences():
    first = table(("same", "t", "t"), ("loss", "t", "t"), ("other", "t", "x"), ("gain", "t", None))
    second = table(("same", "t", "T "), ("loss", "t", "x"), ("other", "t", "y"), ("gain", "t", "t"))
    differing = differing_rows(pair_rows(first, second))
    assert [(row.sample_id, row.winner) for row in differing] == [("gain", "second"), ("loss", "first"), ("other", None)]


def test_open_answers_are_compared_by_their_text():
    rows = pair_rows(table(("a", "A wall", "a wall"), dataset="mimeqa"), table(("a", "A wall", "a door"), dataset="mimeqa"))
    assert (rows[0].first, rows[0].second, rows[0].winner) == ("a wall", "a door", "first")


def test_arms_of_different_atlases_and_repeated_rows_are_refused():
    good, twice = table(("a", "t", "t")), table(("a", "t", "t"), ("a", "t", "t"))
    with pytest.raises(DataError, match="another truth"):
        pair_rows(good, table(("a", "other", "t")))
    for pair in ((good, twice), (twice, good)):
        with pytest.raises(DataError, match="appears twice"):
            pair_rows(*pair)


def test_a_row_without_a_clip_is_listed_as_its_own():
    first, second = (table(("a", "sarcasm", guess)).drop(["clip_id"]) for guess in ("sarcasm", "not sarcasm"))
    without = [arm.append_column("clip_id", pa.nulls(1, pa.string())) for arm in (first, second)]
    csv, markdown = differences(ArmRows("sft", without[0]), ArmRows("sft+bam", without[1]))
    assert "mmsd,a,a,,sarcasm,sft,sarcasm,not sarcasm" in csv and "| mmsd | a | a |" in markdown


def test_rows_of_sensitive_datasets_are_listed_without_what_people_said():
    for dataset, true in (("daicwoz", "depression"), (sensitive_questions(), "She said so.")):
        column = "answer" if dataset == "diaries" else "predicted"
        shared = {"sample_id": "a", "clip_id": "c", "dataset": dataset, "true": true, "question": "She said why."}
        arms = [
            ArmRows(name, pa.Table.from_pylist([{**shared, column: said}], schema=SCHEMA))
            for name, said in (("sft", true), ("grpo", f"no {true}"))
        ]
        csv, markdown = differences(*arms)
        assert "said" not in csv + markdown and f"{dataset},a,c,(not shown)," in csv
    assert ",(not shown),(not shown)" in csv and "| (not shown) | (not shown) |" in markdown
