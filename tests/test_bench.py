"""A benchmark's figures are there as soon as it has them, whatever becomes of the others."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.__main__ import NAMES, run


def test_figures_are_printed_and_kept_one_by_one_and_a_failure_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def broken() -> Iterator[dict[str, float | str]]:
        yield {"before": 1.0}
        assert (tmp_path / "figures.jsonl").read_text().count("\n") == 3, "what was measured is there already"
        raise ValueError("broken")

    measures = {"first": lambda: [{"ratio (goal 2)": 2.5}, {"what": "text"}], "second": broken, "third": lambda: [{"rows": 3.0}]}
    assert run(measures, tmp_path / "figures.jsonl", measures.__getitem__) == ["second"]
    lines = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    assert [(line["benchmark"], line["value"]) for line in lines] == [("first", 2.5), ("first", "text"), ("second", 1.0), ("third", 3.0)]
    assert "first         ratio (goal 2): 2.5" in capsys.readouterr().out


def test_every_module_beside_it_is_a_benchmark():
    assert "loader" in NAMES and "__main__" not in NAMES
