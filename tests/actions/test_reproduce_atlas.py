"""Tables that describe an atlas are written in all formats, beside a page with their pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from hba_ray.actions.reproduce_atlas import reproduce_atlas
from hba_ray.specs import ExperimentSpec


def test_tables_of_an_atlas_are_files_in_all_formats_and_one_page(toy, tmp_path: Path):
    atlas = {"source": "released", "root": str(toy.jsonl)}
    spec = ExperimentSpec.model_validate({"name": "x", "atlas": atlas, "compute": {"storage": str(tmp_path), "workers": 0}})
    made = reproduce_atlas(["T7", "F1"], spec, lambda line: None)
    assert [table.id for table in made.tables] == ["T7", "F1"] and made.page.name == "T7-F1.html"
    assert {file.name for file in made.files} >= {"T7.md", "T7.csv", "T7.tex", "T7.json", "F1.csv", "F1-lengths-of-clips.csv"}
    with (made.page.parent / "T7.csv").open(newline="") as file:
        rows = {row["Dataset"]: row for row in csv.DictReader(file)}
    assert int(rows["toy tone"]["Total"]) > 0 and rows["Total"]["Total"] == "0" and rows["Total"]["Published total"] == "101,964"
    assert json.loads((made.page.parent / "F1.json").read_text())["is_toy"] is False
    assert made.tables[0].survey.lengths is not None and "Rows of datasets" in made.page.read_text()
