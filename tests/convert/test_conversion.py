from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from hba_ray.convert.conversion import Conversion, convert
from hba_ray.data.atlas import build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError, SpecError
from hba_ray.specs import AtlasSpec
from tests.helpers.corpora import write_iemocap


def spec_of(**values: Any) -> AtlasSpec:
    return AtlasSpec.model_validate(values)


def accounts_for_every_row(card: Conversion) -> None:
    for count in card.counts:
        assert count.published is not None
        assert sum(difference.rows for difference in count.differences) == count.rows - count.published
        assert sum(count.labels.values()) == (0 if DATASETS[count.dataset].task.is_open else count.rows)


def test_what_is_written_reads_back_as_an_atlas_with_its_clips(meld_with_clips: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("atlas")
    spec = spec_of(source="meld", root=str(meld_with_clips))
    card = convert(spec, folder)
    index = build_index(spec_of(root=str(folder)), folder, "jsonl")
    assert index.counts() == {
        "meld_emotion": {"train": 4, "validation": 1, "test": 1},
        "meld_senti": {"train": 4, "validation": 1, "test": 1},
    }
    assert {(count.dataset, count.split): count.rows for count in card.counts} == {
        (dataset, split): rows for dataset, its in index.counts().items() for split, rows in its.items()
    }
    (row,) = [row for row in read_rows(index, [int(index.rows_of("test")[0])]) if isinstance(row, Row)]
    (clip,) = row.media["video"]
    assert isinstance(clip, Path)
    assert clip.read_bytes() == (meld_with_clips / "output_repeated_splits_test" / "dia0_utt0.mp4").read_bytes()
    assert row.sample_id == "meld_senti-test-dia0_utt0"
    accounts_for_every_row(card)


def test_the_card_is_plain_json_and_says_what_was_left_out(meld_with_clips: Path, tmp_path: Path):
    card = convert(spec_of(source="meld", root=str(meld_with_clips), datasets=("MELD (EMO)",)), tmp_path / "atlas")
    plain = json.loads(json.dumps(card.to_json()))
    assert [(drop["split"], drop["reason"]) for drop in plain["drops"]] == [
        ("train", "known broken clip"),
        ("validation", "known broken clip"),
    ]
    assert [(count["dataset"], count["split"]) for count in plain["counts"]] == [("meld_emotion", split) for split in SPLITS]
    assert plain["counts"][0]["labels"] == {"happy": 1, "neutral": 1, "surprise": 2}
    assert [Path(plain["files"][split]).name for split in SPLITS] == ["train.jsonl", "validation.jsonl", "test.jsonl"]


def test_a_source_of_another_size_is_named_as_the_reason(mustard: Path, tmp_path: Path):
    card = convert(spec_of(source="mustard", root=str(mustard)), tmp_path / "atlas")
    accounts_for_every_row(card)
    assert "give 12 rows over all splits, the publication counts 690" in card.counts[0].differences[0].reason


def test_the_same_seed_writes_the_same_bytes(cremad: Path, tmp_path: Path):
    spec = spec_of(source="cremad", root=str(cremad))
    written = [
        {split: (tmp_path / name / path).read_bytes() for split, path in convert(spec, tmp_path / name, seed=seed).files.items()}
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_bad_rows_are_dropped_where_the_spec_says_so(meld: Path, tmp_path: Path):
    path = meld / "test_sent_emo.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("fear", "dread"), encoding="utf-8")
    with pytest.raises(DataError, match=r"test_sent_emo\.csv, line 2: 'dread' is not a label of meld_emotion"):
        convert(spec_of(source="meld", root=str(meld)), tmp_path / "atlas")
    card = convert(spec_of(source="meld", root=str(meld), on_bad_row="drop"), tmp_path / "atlas")
    assert Counter(drop.reason for drop in card.drops) == {"unknown label": 1}
    accounts_for_every_row(card)


def test_a_source_that_is_not_converted_or_lacks_the_dataset_is_refused(meld: Path, tmp_path: Path):
    with pytest.raises(SpecError, match="'toy' is read as it is"):
        convert(spec_of(source="toy"), tmp_path)
    with pytest.raises(SpecError, match="'meld' does not hold cremad"):
        convert(spec_of(source="meld", root=str(meld), datasets=("cremad", "meld_senti")), tmp_path)


@pytest.mark.parametrize("source", ["meld", "mustard", "cremad"])
def test_every_public_row_is_accounted_for(public_data: Path, tmp_path: Path, source: str):
    card = convert(spec_of(source=source, root=str(public_data / source)), tmp_path)
    accounts_for_every_row(card)
    assert [count.dataset for count in card.counts] == [ds.id for ds in DATASETS.values() if ds.source == source for _ in SPLITS]
    index = build_index(spec_of(root=str(tmp_path)), tmp_path, "jsonl")
    for split in SPLITS:
        assert index.label_counts(split) == {c.dataset: dict(sorted(c.labels.items())) for c in card.counts if c.split == split}
    differing = {(count.split, count.rows - count.published) for count in card.counts if count.published is not None if count.differences}
    assert (
        differing
        == {
            "meld": {("train", 1), ("validation", 1)},
            "mustard": set(),
            "cremad": {("train", -43), ("validation", 32), ("test", 11)},
        }[source]
    )


def test_cut_clips_are_gone_once_the_rows_hold_them(tmp_path: Path):
    folder = write_iemocap(tmp_path / "public", films=True)
    convert(spec_of(source="iemocap", root=str(folder), corpora={"iemocap": {"video": True}}), tmp_path / "atlas")
    assert sorted(path.name for path in (tmp_path / "atlas").iterdir()) == ["media", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert len(list((tmp_path / "atlas" / "media" / "videos").rglob("*.mp4"))) == 25
