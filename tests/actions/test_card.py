"""The card of an atlas: the hub reads its header, every difference has its reasons, and no row's text is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from hba_ray.actions.build_atlas import build_atlas
from hba_ray.actions.card import README, SENSITIVE, Card, as_json, as_markdown, make_card
from hba_ray.actions.describe import make_atlas
from hba_ray.convert.origins import origin_of
from hba_ray.data.build import Target
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError
from hba_ray.escaping import markdown_cell
from hba_ray.specs import ExperimentSpec
from hba_ray.store.roots import CARD
from tests.convert.conftest import write_meld
from tests.helpers.clips_of import sound, write_rows
from tests.helpers.corpora import WRITERS
from tests.helpers.own_data import write_own

SECRET = "I have not slept since March"


def spec_of(tmp_path: Path, **atlas: Any) -> ExperimentSpec:
    compute = {"storage": str(tmp_path / "runs"), "workers": 0}
    return ExperimentSpec.model_validate({"name": "mine", "atlas": atlas, "compute": compute})


def card_of(spec: ExperimentSpec) -> Card:
    return make_card(spec, make_atlas(spec, lambda line: None))


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """Patients' words, a sound of 30 s, and a row that is there twice."""
    folder = tmp_path / "atlas"
    sound(folder / "a.wav", 30.0)
    said = {"problem": f"{SECRET}\nIs it depression?", "dataset": "mmpsy_depression", "answer": "depression"}
    tess = {"problem": "<audio>\nHow is it?", "dataset": "tess", "answer": "sad", "audios": ["a.wav"]}
    again = {**said, "sample_id": "again"}
    return write_rows(folder, train=[said, again, tess], test=[{**said, "problem": f"{SECRET}.\nIs it depression?", "sample_id": "t"}])


def test_the_hub_reads_the_header_and_a_stranger_the_rest(released: Path, tmp_path: Path):
    text = as_markdown(card_of(spec_of(tmp_path, source="released", root=str(released))))
    header = DatasetCard(text).data.to_dict()
    assert header["language"] == ["en", "zh"] and header["license"] == "other" and header["size_categories"] == ["n<1K"]
    assert header["task_categories"] == ["audio-classification", "text-classification"] and "depression-detection" in header["tags"]
    assert header["dataset_info"]["splits"] == [
        {"name": name, "num_examples": rows} for name, rows in (("train", 3), ("validation", 0), ("test", 1))
    ]
    for words in (
        *(
            "# mine",
            "University of Toronto, Canada",
            "github.com/shuyeit/mmpsy-data",
            "CC BY-NC 4.0",
            "## Rules",
            "| atlas.split_by | group |",
        ),
        *("| tess | train | -1959 the files hold so many; why is not known | 1 | 1960 | -1959 |", "| tess | 0 | 1 | 0.5 | 30.00 |"),
        *(f"- Sensitive: mmpsy_depression. {SENSITIVE}", "| warning | row twice | mmpsy_depression | train | 1 |"),
    ):
        assert words in text, words


def test_no_text_of_a_row_and_no_folder_is_in_either_form(released: Path, tmp_path: Path):
    card = card_of(spec_of(tmp_path, source="released", root=str(released)))
    for text in (as_markdown(card), as_json(card)):
        assert "March" not in text and "How is it" not in text and str(tmp_path) not in text


def test_the_reasons_of_a_difference_add_up_to_it(tmp_path: Path):
    (tmp_path / "meld").mkdir()
    card = card_of(spec_of(tmp_path, source="meld", root=str(write_meld(tmp_path / "meld")), on_bad_row="drop", limit=1))
    assert len(card.counts) == 6 and card.conversions[0].source == "meld"
    for count in card.counts:
        assert count.published is not None and sum(reason.rows for reason in count.reasons) == count.rows - count.published
    reasons = {reason.reason for count in card.counts for reason in count.reasons}
    assert "by atlas.limit" in reasons and any(reason.startswith("the public files give") for reason in reasons)


def test_the_header_claims_no_licence_for_a_users_own_data_and_no_labels_of_videos_that_have_none(tmp_path: Path):
    own = write_own(tmp_path / "own", dataset="spoken", task="SPOKEN")
    (own / "dataset.yaml").write_text((own / "dataset.yaml").read_text().replace("politeness", '"tone:\\n---\\nof  voice"'))
    tess = {"source": "tess", "root": str(WRITERS["tess"](tmp_path / "tess"))}
    alone, both = ([tess], [tess, {"source": "own", "root": str(own)}])
    licences = [DatasetCard(as_markdown(card_of(spec_of(tmp_path, sources=one)))).data.to_dict()["license"] for one in (alone, both)]
    assert licences == [origin_of(DATASETS["tess"]).hub, "other"]
    card = card_of(spec_of(tmp_path, sources=both))
    assert "tone:-----of-voice" in DatasetCard(as_markdown(card)).data.to_dict()["tags"]
    card.signatures["siq2"] = {"text_video": 3}  # open answers
    assert DatasetCard(as_markdown(card)).data.to_dict()["task_categories"] == ["audio-classification", "text-classification"]


def test_all_rows_that_two_splits_share_are_in_the_card(tmp_path: Path):
    rows = [
        {"problem": f"Is it anger? {number}", "dataset": "cremad", "answer": "anger", "sample_id": f"id{number}"} for number in range(25)
    ]
    folder = write_rows(tmp_path / "atlas", train=rows, test=[{**one, "sample_id": f"{one['sample_id']} again"} for one in rows])
    card = card_of(spec_of(tmp_path, source="released", root=str(folder)))
    assert [(one.finding, one.split, one.rows) for one in card.findings if one.severity == "error"] == [
        ("row in two splits", "test, train", 25)
    ]
    assert "| error | row in two splits | cremad | test, train | 25 |" in as_markdown(card)


def test_the_rules_and_findings_of_a_converter_stand_in_the_card(tmp_path: Path):
    card = card_of(spec_of(tmp_path, source="tess", root=str(WRITERS["tess"](tmp_path / "tess"))))
    (conversion,) = card.conversions
    text = as_markdown(card)
    assert conversion.rules and all(f"| tess | {markdown_cell(said)} |" in text for said in (*conversion.rules, *conversion.findings))


def test_an_atlas_that_was_built_says_of_itself_how_it_was_made(tmp_path: Path):
    (tmp_path / "meld").mkdir()
    meld = spec_of(tmp_path, source="meld", root=str(write_meld(tmp_path / "meld")), on_bad_row="drop")
    folder = tmp_path / "built"
    built = build_atlas(meld, Target(folder, "jsonl"), workers=1, say=lambda line: None)
    assert DatasetCard((folder / README).read_text()).data.to_dict()["configs"] == [
        {"config_name": "default", "data_files": [{"split": name, "path": f"{name}-*.jsonl"} for name in ("train", "validation", "test")]}
    ]
    again = card_of(spec_of(tmp_path, source="released", root=str(folder)))
    assert again.conversions == built.conversions and [count.reasons for count in again.counts] == [count.reasons for count in built.counts]
    assert built.files and not again.files and "CC BY-NC 4.0" not in as_markdown(again)


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"name": 3}', '{"conversions": "all"}'])
def test_a_damaged_card_beside_the_rows_is_refused_with_a_way_out(released: Path, tmp_path: Path, text: str):
    (released / CARD).write_text(text)
    with pytest.raises(DataError, match=r"card\.json: no card of an atlas") as refused:
        card_of(spec_of(tmp_path, source="released", root=str(released)))
    assert "take it away" in refused.value.way_out


def test_the_two_forms_have_one_content(released: Path, tmp_path: Path):
    spec = spec_of(tmp_path, source="released", root=str(released))
    card = card_of(spec)
    assert json.loads(as_json(card))["fingerprint"] == card.fingerprint and f"- Fingerprint: {card.fingerprint}" in as_markdown(card)
    assert card_of(spec) == card
