"""All converters: one for each source, small corpora written and read back, and public files where a variable names them."""

from __future__ import annotations

import json
import pkgutil
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

import hba_ray.convert.corpora
from hba_ray.convert.conversion import convert
from hba_ray.convert.segments import read_classes
from hba_ray.data.atlas import build_index
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.specs import AtlasSpec
from hba_ray.specs.sections.atlas import SOURCES_READ_AS_THEY_ARE
from tests.convert.test_conversion import accounts_for_every_row, spec_of
from tests.helpers.converted import converted, labels, sizes
from tests.helpers.corpora import WRITERS, put, put_lines, siq2_row

SOURCES = set(get_args(AtlasSpec.model_fields["source"].annotation)) - set(SOURCES_READ_AS_THEY_ARE)


def test_every_source_has_a_converter_and_every_converter_a_source():
    modules = {module.name for module in pkgutil.iter_modules(hba_ray.convert.corpora.__path__)}
    assert modules == SOURCES
    assert {dataset.source for dataset in DATASETS.values() if dataset.is_benchmark} <= SOURCES


@pytest.mark.parametrize("source", sorted(WRITERS))
def test_a_small_corpus_is_written_and_read_back_with_its_rules_in_the_card(tmp_path: Path, source: str):
    if source == "mosei":
        pytest.importorskip("h5py")
    folder = WRITERS[source](tmp_path / "public")
    card = convert(spec_of(source=source, root=str(folder)), tmp_path / "atlas")
    if source != "iemocap":  # the paper has no counts of it
        accounts_for_every_row(card)
    index = build_index(spec_of(root=str(tmp_path / "atlas")), tmp_path / "atlas", "jsonl")
    counts = {(dataset, split): rows for dataset, its in index.counts().items() for split, rows in its.items()}
    assert counts == {(count.dataset, count.split): count.rows for count in card.counts if count.rows}
    for split in SPLITS:
        assert index.label_counts(split) == {
            c.dataset: dict(sorted(c.labels.items())) for c in card.counts if c.split == split and c.labels
        }
    plain = json.loads(json.dumps(card.to_json()))
    assert plain["rules"]
    assert plain["sensitive"] == [dataset.id for dataset in DATASETS.values() if dataset.source == source and dataset.sensitive]
    letters = {"text": "T", "audio": "A", "video": "V"}
    for dataset in {count.dataset for count in card.counts}:
        found = {part for name in index.only(dataset).table["modality_signature"].to_pylist() for part in name.split("_")}
        assert {letters[name] for name in found} <= set(DATASETS[dataset].modalities)


def test_the_sensitive_corpora_are_those_of_patients_and_minors():
    assert {dataset.source for dataset in DATASETS.values() if dataset.sensitive} == {"daicwoz", "mmpsy"}


HISTOGRAMS = {  # of CMU's rule, from -3 to 3
    "train": (613, 1584, 2542, 3538, 5289, 2256, 505),
    "validation": (47, 159, 300, 433, 631, 251, 50),
    "test": (156, 489, 705, 1025, 1512, 665, 110),
}


def test_the_public_segments_of_mosei(public_data: Path, tmp_path: Path):
    """Words are ours, since the public table has none; they have its times, so that every row is joined."""
    for name in ("CMU_MOSEI_Labels.csv", "standard_folds.json"):
        (tmp_path / name).symlink_to(public_data / "cmu_mosei" / name)
    for video, segments in read_classes(tmp_path / "CMU_MOSEI_Labels.csv").items():
        lines = (f"{video}___{place}___{one.begin}___{one.end}___Words.\n" for place, one in enumerate(segments))
        put(tmp_path / "Transcript" / "Combined" / f"{video}.txt", "".join(lines))
    made = converted("mosei", tmp_path, datasets=["mosei_senti"])
    assert sizes(made) == [16327, 1871, 4662]
    names = DATASETS["mosei_senti"].labels
    assert {split: tuple(labels(made, split)[name] for name in names) for split in SPLITS} == HISTOGRAMS
    assert Counter(drop.reason for drop in made.drops) == {"video in no fold": 399}


def test_the_public_rows_of_social_iq(public_data: Path, tmp_path: Path):
    (tmp_path / "qa_train.json").symlink_to(public_data / "social_iq2" / "qa_train.json")
    put_lines(tmp_path / "qa_val.json", [siq2_row("ours", 0, "ours_q0")])
    card = convert(spec_of(source="siq2", root=str(tmp_path)), tmp_path / "atlas")
    assert [count.rows for count in card.counts] == [6159, 0, 1]
    index = build_index(spec_of(root=str(tmp_path / "atlas")), tmp_path / "atlas", "jsonl")
    assert len(index.rows_of("train")) == 6159
    assert len({row.clip_id for row in converted("siq2", tmp_path).rows["train"]}) == 987


def test_the_public_rows_in_the_columns_of_intentqa(public_data: Path, tmp_path: Path):
    card = convert(spec_of(source="intentqa", root=str(public_data / "intentqa_shaped")), tmp_path)
    lines = [len((public_data / "intentqa_shaped" / f"{name}.csv").read_bytes().split(b"\r\n")) - 2 for name in ("train", "val", "test")]
    assert [count.rows for count in card.counts] == lines
    assert card.findings == []
