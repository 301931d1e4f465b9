"""`hba reproduce` of tables that describe an atlas, and `hba atlas card`: which atlas, several tables at once, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("words", [["T7", "Figure 1", "atlas.toy.rows=40"], ["f1", "7", "atlas.toy.rows=40"]])
def test_several_tables_are_asked_for_at_once_at_toy_scale(hba, words, tmp_path: Path):
    code, out, _ = hba("reproduce", *words, "--scale", "toy", f"compute.storage={tmp_path / 'runs'}")
    assert code == 0 and "Table 7, of a toy atlas: no verdict" in out and "Figure 1, of a toy atlas" in out
    assert out.count("no verdict: toy atlas") == 2 and "101,964" in out


def test_the_atlas_of_a_folder_or_of_another_spec_is_described(hba, toy, tmp_path: Path):
    storage = f"compute.storage={tmp_path / 'runs'}"
    code, out, _ = hba("reproduce", "T2", "--atlas", str(toy.parquet), storage)
    assert code == 0 and "outcome T2  0 of 1 numbers as published; rows: 0 of 101,964" in out
    code, out, err = hba("reproduce", "T2", "--atlas", "nowhere.yaml", storage)
    assert code == 2 and "no such file" in err
    code, out, err = hba("reproduce", "T2", storage, "atlas.root=nowhere")
    assert code == 1 and "no such folder" in err


@pytest.mark.parametrize("words", [["T4", "--atlas", "."], ["T7", "--atlas", ".", "--scale", "toy"], ["T7", "T11", "--atlas", "."]])
def test_an_atlas_is_named_only_for_tables_that_describe_one(hba, words):
    code, out, err = hba("reproduce", *words)
    assert code == 2 and "tables that describe an atlas" in " ".join((out + err).split())


def test_a_card_is_printed_or_written_and_is_that_of_the_spec(hba, toy, tmp_path: Path):
    words = ("atlas", "card", str(toy.jsonl), f"compute.storage={tmp_path / 'runs'}", "compute.workers=0", "atlas.datasets=[toy_words]")
    code, out, _ = hba(*words)
    assert code == 0 and out.startswith("---\n") and "| toy_words | train |" in out and "toy_tone" not in out
    code, shown, _ = hba(*words, "--to", "card.md")
    assert code == 0 and Path("card.md").read_text() == out and "card.md" in shown
    code, _, err = hba("atlas", "card", "nowhere.yaml")
    assert code == 2 and "no such file" in err
