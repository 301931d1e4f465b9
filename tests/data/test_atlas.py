"""Both released layouts give the same rows; what is wrong with an atlas is said with dataset, row and reason."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.data.shards import find_shards
from hba_ray.data.tasks import SPLITS
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec

ROW = {
    "problem": "Is this sarcasm?",
    "answer": "sarcasm",
    "dataset": "mmsd",
    "class_label": "sarcasm",
    "videos": [],
    "audios": [],
    "images": [],
}


def spec(root: Path, **changes) -> AtlasSpec:
    return AtlasSpec(root=str(root), **changes)


def jsonl(folder: Path, *records, name: str = "train.jsonl") -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def rows_of(index: AtlasIndex, split: str) -> list[Row | DataError]:
    return list(read_rows(index, index.rows_of(split)))


def content(row: Row | DataError) -> tuple:
    assert isinstance(row, Row), row
    media = {name: [clip if isinstance(clip, bytes) else clip.read_bytes() for clip in clips] for name, clips in row.media.items()}
    return row.sample_id, row.clip_id, row.dataset.id, row.problem, row.answer, row.label, media


def test_both_layouts_give_the_same_rows(toy):
    parquet, jsonl_index = (build_index(spec(folder), folder) for folder in (toy.parquet, toy.jsonl))
    assert parquet.counts() == jsonl_index.counts()
    for split in SPLITS:
        both = [sorted(map(content, rows_of(index, split)), key=lambda row: row[0]) for index in (parquet, jsonl_index)]
        assert both[0] == both[1]
        assert both[0]


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_light_rows_say_the_same_and_ask_for_no_clip(toy, tmp_path, layout):
    folder = shutil.copytree(getattr(toy, layout), tmp_path / "rows")
    index = build_index(spec(folder), folder)
    whole = [content(row)[:-1] for row in rows_of(index, "train")]
    for clip in folder.rglob("*.wav"):
        clip.unlink()
    light = list(read_rows(index, index.rows_of("train"), light=True))
    assert [content(row)[:-1] for row in light] == whole
    assert not any(row.media for row in light if isinstance(row, Row))


def test_the_index_knows_counts_and_labels_without_reading_media(toy):
    index = build_index(spec(toy.parquet), toy.parquet)
    truth = [content(row) for row in rows_of(index, "train")]
    counts = index.label_counts("train")
    assert set(counts) == {"toy_tone", "toy_nod", "toy_words"}
    for dataset, labels in counts.items():
        assert labels == {label: sum(row[2] == dataset and row[5] == label for row in truth) for label in labels}


def test_an_index_survives_its_file(toy, tmp_path):
    index = replace(build_index(spec(toy.jsonl, limit=3), toy.jsonl), transcripts={2: "so they said"})
    index.save(tmp_path)
    again = AtlasIndex.load(tmp_path)
    assert again.table.equals(index.table)
    assert (again.root, again.shards, again.drops, again.transcripts) == (index.root, index.shards, index.drops, index.transcripts)


@pytest.mark.parametrize("file", ["index.json", "index.parquet"])
@pytest.mark.parametrize("left", [b"", b"{}", b"[1]", None])
def test_a_damaged_index_is_named_with_the_step_to_do_again(toy, tmp_path, file, left):
    build_index(spec(toy.jsonl, limit=3), toy.jsonl).save(tmp_path)
    if left is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(left)
    with pytest.raises(DataError, match=rf"{file}: cannot be read: .*\n  do the step again"):
        AtlasIndex.load(tmp_path)


def test_datasets_and_limit_choose_rows(toy):
    index = build_index(spec(toy.jsonl, datasets=("toy_nod", "toy_words"), limit=2), toy.jsonl)
    assert index.counts() == {dataset: dict.fromkeys(sorted(SPLITS), 2) for dataset in ("toy_nod", "toy_words")}


def test_parts_of_an_index_keep_each_row_s_transcript(toy):
    whole = build_index(AtlasSpec(root=str(toy.jsonl), limit=3), toy.jsonl)
    said = replace(whole, transcripts={line: f"said by {number}" for number, line in enumerate(range(len(whole.table)))})
    spoken = {row.sample_id: row.problem for row in read_rows(said, range(len(said.table)))}
    assert len(set(spoken.values())) == len(spoken) == len(whole.table)
    parts = [
        said.of_kind(open_answers=True),
        said.of_kind(open_answers=False),
        said.only("toy_nod"),
        said.without(["toy_tone"], ["train", "test"]),
        said.take(said.rows_of("test")[::-1]),
    ]
    for part in parts:
        rows = list(read_rows(part, range(len(part.table))))
        assert 0 < len(rows) < len(spoken) and all(row.problem == spoken[row.sample_id] for row in rows)
    assert {row.dataset.id for row in read_rows(parts[0], range(len(parts[0].table)))} == {"toy_answers"}
    assert len(parts[3].table) == len(whole.table) - 6


def test_texts_are_those_of_the_split(tmp_path):
    jsonl(tmp_path, ROW | {"problem": "only in train"})
    jsonl(tmp_path, ROW | {"problem": "only in test"}, name="test.jsonl")
    index = build_index(spec(tmp_path), tmp_path)
    assert "only in train" in list(index.texts("train"))
    assert "only in test" not in list(index.texts("train"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("final_v8_train_cleaned_2.jsonl", "train"),
        ("final_v8_val_cleaned.jsonl", "validation"),
        ("final_v8_test_cleaned.jsonl", "test"),
        ("dev.jsonl", "validation"),
        ("train-00003-of-00600.parquet", "train"),
        ("validation-00000-of-00001.parquet", "validation"),
    ],
)
def test_released_file_names_tell_their_split(tmp_path, name, split):
    (tmp_path / name).touch()
    assert [shard.split for shard in find_shards(tmp_path)] == [split]


def test_two_versions_of_a_split_are_refused(tmp_path):
    jsonl(tmp_path, ROW, name="train.jsonl")
    jsonl(tmp_path, ROW, name="final_train.jsonl")
    with pytest.raises(DataError, match="several jsonl files"):
        find_shards(tmp_path)


@pytest.mark.parametrize("make", [lambda folder: folder / "absent", lambda folder: folder])
def test_a_folder_without_an_atlas_is_refused(tmp_path, make):
    with pytest.raises(DataError, match=r"no such folder|holds no"):
        find_shards(make(tmp_path))


BAD_ROWS = {
    "unknown label": ROW | {"class_label": "sarcasmm"},
    "unknown dataset": ROW | {"dataset": "mustart"},
    "missing column": {"problem": "x", "answer": "y"},
    "wrong type": ROW | {"problem": 3},
    "empty text": ROW | {"answer": "  "},
    "not JSON": '{"problem": "x", "ans',
    "missing file": ROW | {"problem": "<audio>\nx", "audios": ["nowhere.wav"]},
    "path leaves the atlas": ROW | {"problem": "<audio>\nx", "audios": ["../outside.wav"]},
    "clips do not match marks": ROW | {"problem": "<audio><audio>\nx", "audios": []},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_bad_row_is_named_with_its_place_and_reason(tmp_path, reason):
    folder = tmp_path / "atlas"
    folder.mkdir()
    (tmp_path / "outside.wav").touch()
    jsonl(folder, ROW, BAD_ROWS[reason], ROW)
    with pytest.raises(DataError) as refused:
        build_index(spec(folder), folder)
    assert refused.value.reason == reason
    assert "train.jsonl row 1" in refused.value.where


def test_dropped_rows_are_counted_by_dataset_and_reason(tmp_path):
    jsonl(tmp_path, ROW, *BAD_ROWS.values())
    index = build_index(spec(tmp_path, on_bad_row="drop"), tmp_path)
    assert index.counts() == {"mmsd": {"train": 1}}
    assert [drop.reason for drop in index.drops] == list(BAD_ROWS)
    assert [drop.dataset for drop in index.drops] == ["mmsd", "mustart", "unknown", "mmsd", "mmsd", "unknown", "mmsd", "mmsd", "mmsd"]
    assert {drop.split for drop in index.drops} == {"train"}


def test_a_row_whose_id_was_there_before_is_refused_or_counted_where_predictions_need_it(tmp_path):
    rows = [
        ROW | {"sample_id": "a"},
        ROW | {"sample_id": "b"},
        ROW | {"sample_id": "a"},
        ROW | {"sample_id": "a", "dataset": "urfunny", "class_label": "humor"},
    ]
    copies = [ROW, ROW]
    jsonl(tmp_path, *rows, *copies)
    jsonl(tmp_path, *rows, *copies, name="test.jsonl")
    with pytest.raises(
        DataError, match=r"test\.jsonl row 2 \(mmsd\): has the id of test\.jsonl row 0: 'a'\n  give each row .*on_bad_row=drop"
    ) as refused:
        build_index(spec(tmp_path), tmp_path)
    assert refused.value.reason == "duplicate sample"
    index = build_index(spec(tmp_path, on_bad_row="drop"), tmp_path)
    assert index.counts() == {"mmsd": {"train": 5, "test": 3}, "urfunny": {"train": 1, "test": 1}}
    assert [(drop.split, drop.reason) for drop in index.drops] == [("test", "duplicate sample")] * 2


def test_parquet_rows_that_differ_in_their_clips_alone_are_different_rows(tmp_path):
    rows = [{**ROW, "problem": "<audio>\nx", "audios": [clip]} for clip in (b"one", b"two")]
    pq.write_table(
        pa.Table.from_pylist([{key: row[key] for key in ("problem", "answer", "dataset", "class_label", "audios")} for row in rows]),
        tmp_path / "test.parquet",
    )
    index = build_index(spec(tmp_path), tmp_path)
    assert index.counts() == {"mmsd": {"test": 2}} and len({row.sample_id for row in rows_of(index, "test") if isinstance(row, Row)}) == 2


def test_an_atlas_of_bad_rows_alone_is_refused_with_their_reasons(tmp_path):
    jsonl(tmp_path, BAD_ROWS["unknown label"])
    with pytest.raises(DataError, match="unknown label: 1"):
        build_index(spec(tmp_path, on_bad_row="drop"), tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "a/../../outside.wav", "link.wav", "\0", "x" * 5000, ""])
def test_no_path_leaves_the_atlas(tmp_path, path):
    folder = tmp_path / "atlas"
    folder.mkdir()
    (tmp_path / "outside.wav").touch()
    (folder / "link.wav").symlink_to(tmp_path / "outside.wav")
    jsonl(folder, ROW | {"problem": "<audio>\nx", "audios": [path]})
    with pytest.raises(DataError) as refused:
        build_index(spec(folder), folder)
    assert refused.value.reason in {"path leaves the atlas", "bad path", "missing file", "not a file"}


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_parquet_is_refused_by_name(toy, tmp_path, damage):
    source = next(toy.parquet.glob("train-*.parquet"))
    data = source.read_bytes()
    target = tmp_path / source.name
    target.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"PAR1" + bytes(100), "empty": b""}[damage])
    with pytest.raises(DataError, match="train-00000") as refused:
        build_index(spec(tmp_path), tmp_path)
    assert refused.value.reason == "corrupt file"


def test_a_damaged_media_page_is_found_when_it_is_read(toy, tmp_path):
    source = next(toy.parquet.glob("train-*.parquet"))
    shutil.copy(source, tmp_path)
    column = pq.ParquetFile(source).metadata.row_group(0).column(2)
    with open(tmp_path / source.name, "r+b") as file:
        file.seek(column.data_page_offset)
        file.write(b"\xff" * 200)
    index = build_index(spec(tmp_path), tmp_path)
    with pytest.raises(DataError, match="damaged"):
        rows_of(index, "train")


def test_parquet_without_the_released_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="lacks the columns problem, answer, dataset"):
        build_index(spec(tmp_path), tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*ROW, "texts", "sample_id", "clip_id", "ext_video_feats"]), VALUES))
def test_any_record_is_a_row_or_one_located_error(tmp_path, record):
    jsonl(tmp_path, ROW | record)
    try:
        index = build_index(spec(tmp_path), tmp_path)
    except DataError as refused:
        assert "train.jsonl row 0" in refused.where
    else:
        assert index.table.num_rows == 1
