"""An atlas that was built is read like a released one, holds the same rows, goes on where it was, and says where it comes from."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hba_ray.actions.build_atlas import build_atlas
from hba_ray.actions.card import CARD, README, as_markdown
from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.build import NOTES, Target, build, parts_of
from hba_ray.data.rows import Row
from hba_ray.errors import HbaError
from hba_ray.specs import AtlasSpec, ExperimentSpec
from tests.convert.conftest import write_meld
from tests.helpers.indices import index_of


def content(index: AtlasIndex) -> list[Row]:
    """Rows of an index by split and id, with their clips as bytes."""
    rows = [row for row in read_rows(index, range(len(index.table))) if isinstance(row, Row)]
    assert len(rows) == len(index.table)
    loaded = [
        replace(row, media={name: tuple(c if isinstance(c, bytes) else c.read_bytes() for c in clips) for name, clips in row.media.items()})
        for row in rows
    ]
    return sorted(loaded, key=lambda row: (row.dataset.id, row.sample_id))


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
@pytest.mark.parametrize("source", ["parquet", "jsonl"])
def test_the_same_rows_stand_in_files_of_bounded_size(toy, tmp_path: Path, layout, source):
    index = index_of(getattr(toy, source))
    target = Target(tmp_path / "atlas", layout, part_bytes=1 << 20)
    told: list[int] = []
    written = build(index, target, "rows", workers=2, progress=told.append)
    again = build_index(AtlasSpec(root=str(target.folder)), target.folder)
    assert content(again) == content(index) and sum(told) == len(index.table)
    assert sum(sum(part.rows.values()) for part in written) == len(index.table)
    largest = max(sum(len(clip) for clips in row.media.values() for clip in clips) for row in content(index))
    if layout == "parquet":
        sizes = [file.stat().st_size for file in target.folder.glob("*.parquet")]
        assert len(sizes) > 3 and max(sizes) < (1 << 20) + largest + 200_000
    else:
        assert len({shard.name for shard in again.shards}) == len(written) > 3


def test_an_interrupted_build_goes_on_with_the_parts_that_are_missing(toy, tmp_path: Path):
    index, target = index_of(toy.jsonl), Target(tmp_path / "atlas", part_bytes=1 << 18)
    seen = 0

    def stop(rows: int) -> None:
        nonlocal seen
        seen += rows
        if seen > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(index, target, "rows", workers=1, progress=stop)
    first = {file.name: file.stat().st_mtime_ns for file in target.folder.glob("*.parquet")}
    assert 0 < len(first) < len(parts_of(index, 1 << 18))
    build(index, target, "rows", workers=2)
    assert content(index_of(target.folder)) == content(index)
    assert first.items() <= {file.name: file.stat().st_mtime_ns for file in target.folder.glob("*.parquet")}.items()
    with pytest.raises(HbaError, match="holds another build"):
        build(index, target, "other rows")
    with pytest.raises(HbaError, match="holds files"):
        build(index, Target(toy.jsonl), "rows")


def test_a_build_that_was_killed_before_its_plan_goes_on_and_a_damaged_note_is_told(toy, tmp_path: Path):
    index, target = index_of(toy.jsonl), Target(tmp_path / "atlas")
    (target.folder / NOTES).mkdir(parents=True)
    (target.folder / NOTES / ".plan.json.7.draft").write_text("{")
    assert build(index, target, "rows")
    (target.folder / NOTES / "plan.json").write_text("{")
    with pytest.raises(HbaError, match=r"plan\.json: no plan of a build"):
        build(index, target, "rows")
    (tmp_path / "file").touch()
    with pytest.raises(HbaError, match="file: is a file"):
        build(index, Target(tmp_path / "file"), "rows")


def test_clips_are_linked_where_that_is_asked_for_and_a_missing_one_is_told_or_dropped(toy, tmp_path: Path):
    source = build(index_of(toy.parquet), Target(tmp_path / "source", "jsonl"), "toy") and tmp_path / "source"
    index = index_of(source)
    clips = sorted(source.rglob("*.wav"))
    build(index, Target(tmp_path / "linked", "jsonl", link=True), "rows")
    assert {clip.stat().st_ino for clip in clips} == {clip.stat().st_ino for clip in (tmp_path / "linked").rglob("*.wav")}
    before = clips[0].read_bytes()
    build(index, Target(tmp_path / "copied", "jsonl"), "rows")
    assert {clip.stat().st_nlink for clip in (tmp_path / "copied").rglob("*.wav")} == {1} and clips[0].read_bytes() == before
    clips[0].unlink()
    with pytest.raises(HbaError, match="not there"):
        build(index, Target(tmp_path / "refused", "jsonl"), "rows")
    written = build(index, Target(tmp_path / "dropped", "jsonl", on_bad_row="drop"), "rows")
    assert [part.dropped for part in written if part.dropped] == [{"toy_answers": {"missing file": 1}}]


def test_two_rows_of_training_with_one_id_keep_their_own_clips(tmp_path: Path):
    (tmp_path / "source").mkdir()
    rows = []
    for name in ("a", "b"):
        (tmp_path / "source" / f"{name}.wav").write_bytes(name.encode())
        rows.append({"problem": "<audio>", "answer": name, "dataset": "siq2", "sample_id": "same", "audios": [f"{name}.wav"]})
    (tmp_path / "source" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build(index_of(tmp_path / "source"), Target(tmp_path / "built", "jsonl"), "rows")
    found = content(index_of(tmp_path / "built"))
    assert sorted((row.answer, row.media["audio"][0]) for row in found) == [("a", b"a"), ("b", b"b")]


def test_joined_corpora_are_one_atlas_with_a_card(toy, tmp_path: Path):
    (tmp_path / "meld").mkdir()
    sources = [{"source": "meld", "root": str(write_meld(tmp_path / "meld"))}, {"source": "released", "root": str(toy.jsonl)}]
    atlas = {"sources": sources, "on_bad_row": "drop", "datasets": ["meld_senti", "toy_words"]}
    spec = ExperimentSpec.model_validate({"name": "joined", "atlas": atlas, "compute": {"storage": str(tmp_path / "runs"), "workers": 0}})
    folder = tmp_path / "atlas"
    made = build_atlas(spec, Target(folder), workers=2, say=lambda line: None)
    card = json.loads((folder / CARD).read_text())
    counts = {(one["dataset"], one["split"]): one for one in card["counts"]}
    assert counts["meld_senti", "test"] == {
        "dataset": "meld_senti", "split": "test", "rows": 1, "published": 2610, "labels": {"negative": 1},
        "reasons": [{"rows": -2609, "reason": "the public files give 8 rows over all splits, the publication counts 13706"}],
    }  # fmt: skip
    assert card["conversions"][0]["source"] == "meld" and card["rules"]["split_by"] == "group"
    assert index_of(folder).counts().keys() == {"meld_senti", "toy_words"}
    assert str(tmp_path) not in json.dumps(card) and (folder / README).read_text() == as_markdown(made)
    assert sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet")) == sum(one["rows"] for one in card["counts"])
    assert (folder / NOTES).is_dir()
