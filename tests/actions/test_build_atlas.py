"""An atlas that was built is read like a released one, holds the same rows, goes on where it was, and says where it comes from."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hba_ray.actions.build_atlas import build_atlas
from hba_ray.actions.card import README, as_markdown, make_card, problem_sheet
from hba_ray.actions.describe import make_atlas
from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.build import NOTES, Target, build, parts_of
from hba_ray.data.rows import Row
from hba_ray.errors import HbaError, SpecError
from hba_ray.specs import AtlasSpec, ExperimentSpec
from hba_ray.specs.sections.own import OF_AN_ATLAS
from hba_ray.store.roots import CARD
from tests.convert.conftest import write_meld
from tests.helpers.corpora import tiny_sound
from tests.helpers.indices import index_of
from tests.helpers.own_data import write_own


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


def test_the_card_of_an_atlas_counts_what_was_written(tmp_path: Path):
    sounds = [tmp_path / "source" / f"{place}.wav" for place in range(3)]
    rows = [
        {"problem": "<audio>", "answer": "sad", "dataset": "cremad", "sample_id": sound.stem, "audios": [sound.name]} for sound in sounds
    ]
    (tmp_path / "source").mkdir()
    for sound in sounds:
        sound.write_bytes(tiny_sound())
    (tmp_path / "source" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    atlas = {"root": "~/source", "on_bad_row": "drop"}
    compute = {"storage": str(tmp_path / "runs"), "workers": 0}
    spec = ExperimentSpec.model_validate({"name": "gone", "atlas": atlas, "compute": compute})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path))
        made = make_atlas(spec, lambda line: None)
        sounds[0].unlink()  # between reading and writing
        written = build(made.index, Target(tmp_path / "atlas", "jsonl", on_bad_row="drop"), "rows")
        card = make_card(spec, made, layout="jsonl", written=written)
    assert card.signatures == {"cremad": {"text_audio": 2}} and card.rows() == 2
    assert [row for row in problem_sheet(card).rows if "left out" in row[1]] == [("cremad", "left out: missing file (rows: 1)")]


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


def test_an_atlas_with_rows_of_ones_own_is_read_by_whoever_gets_it(tmp_path: Path):
    atlas = {"source": "own", "root": str(write_own(tmp_path / "own"))}
    compute = {"storage": str(tmp_path / "runs"), "workers": 0}
    spec = ExperimentSpec.model_validate({"name": "mine", "atlas": atlas, "compute": compute})
    build_atlas(spec, Target(tmp_path / "atlas"), workers=1, say=lambda line: None)
    shutil.rmtree(tmp_path / "own")
    code = (
        "import sys; from pathlib import Path; from hba_ray.data.atlas import build_index; from hba_ray.data.tasks import Heads; "
        "from hba_ray.specs import AtlasSpec; spec = AtlasSpec(root=sys.argv[1]); "
        "import json; print(json.dumps([build_index(spec, Path(sys.argv[1])).counts(), Heads.of(spec).classes[25:]]))"
    )
    said = subprocess.run([sys.executable, "-c", code, str(tmp_path / "atlas")], capture_output=True, text=True, check=True).stdout
    rows = {"courtesy": {"train": 16, "validation": 4, "test": 4}}
    assert json.loads(said) == [rows, [["POLITE", "rude"], ["POLITE", "polite"]]]
    moved = AtlasSpec.model_validate({"root": str(tmp_path / "atlas")})
    assert moved.own == spec.atlas.own and moved.alone(0).own == ()


@pytest.mark.parametrize("content", ["{", '[{"dataset": "Courtesy"}]', "\0", '{"dataset": "courtesy"}'])
def test_declarations_of_an_atlas_that_were_damaged_are_refused_by_file(tmp_path: Path, content: str):
    (tmp_path / OF_AN_ATLAS).write_text(content)
    with pytest.raises(SpecError, match=f"(?s){OF_AN_ATLAS}.*build the atlas again"):
        AtlasSpec(root=str(tmp_path))
