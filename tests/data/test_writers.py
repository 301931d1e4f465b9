"""What the writers write is what `parse_row` reads, in both layouts, to the byte and only when complete."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hba_ray.data.rows import SCHEMA, Row, parse_row
from hba_ray.data.tasks import BENCHMARK_TASKS, DATASETS
from hba_ray.data.toy import film, speak
from hba_ray.data.writers import task_column, write_jsonl, write_parquet
from hba_ray.errors import BadMedia, DataError


def some_rows(count: int = 5) -> list[Row]:
    """Rows of every signature, with two clips of a kind, descriptors, an open answer and a name that is no file name."""
    rng = np.random.default_rng(0)
    sound, picture = speak("sad", rng), film("nod", rng)
    templates = [
        Row("a/../b é", "clip-1", DATASETS["toy_tone"], "<audio>\nWhich emotion?", "sad", "sad", {"audio": (sound,)}),
        Row("two", "clip-2", DATASETS["meld_senti"], "<video>\n<video>\nWell?", "neutral", "neutral", {"video": (picture, picture[::-1])}),
        Row("open", "clip-2", DATASETS["mimeqa"], "<video>\n<audio>\nWhat?", "He «waves».", None, {"video": (picture,), "audio": (sound,)}),
        Row("text", "clip-3", DATASETS["mmpsy_anxiety"], "How are\nyou?", "anxiety", "anxiety"),
        Row(
            "described",
            "clip-4",
            DATASETS["mmsd"],
            "<audio>\nReally?",
            "sarcasm",
            "sarcasm",
            {"audio": (sound,)},
            {"ext_video_feats": (b"pose",), "ext_audio_feats": (b"smile",)},
        ),
    ]
    return [replace(templates[i % 5], sample_id=f"{templates[i % 5].sample_id}{i // 5 or ''}") for i in range(count)]


def read_parquet(folder: Path, split: str) -> list[Row]:
    paths = sorted(folder.glob(f"{split}-*.parquet"))
    return [parse_row(record, where="row") for path in paths for record in pq.read_table(path).to_pylist()]


def read_jsonl(folder: Path, split: str) -> list[Row]:
    """Rows with their clips read, to compare them with rows whose clips are bytes."""
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    parsed = [parse_row(json.loads(line), where="row", root=folder) for line in lines]
    return [replace(row, media=loaded(row.media), descriptors=loaded(row.descriptors)) for row in parsed]


def loaded(clips):
    return {name: tuple(path.read_bytes() for path in paths) for name, paths in clips.items()}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_parquet_reads_back_as_the_same_rows(tmp_path):
    write_parquet(some_rows(), tmp_path, "train")
    assert read_parquet(tmp_path, "train") == some_rows()


def test_jsonl_reads_back_as_the_same_rows(tmp_path):
    write_jsonl(some_rows(), tmp_path, "train")
    assert read_jsonl(tmp_path, "train") == some_rows()


def test_rows_whose_clips_are_paths_can_be_written_in_the_other_layout(tmp_path):
    write_jsonl(some_rows(), tmp_path / "tree", "train")
    lines = (tmp_path / "tree/train.jsonl").read_text(encoding="utf-8").splitlines()
    write_parquet((parse_row(json.loads(line), where="row", root=tmp_path / "tree") for line in lines), tmp_path, "train")
    assert read_parquet(tmp_path, "train") == some_rows()


def test_parquet_has_the_released_columns_groups_and_file_names(tmp_path):
    paths = write_parquet(some_rows(23), tmp_path, "test", rows_per_group=4, rows_per_file=10)
    assert [path.name for path in paths] == [f"test-0000{i}-of-00003.parquet" for i in range(3)]
    files = [pq.ParquetFile(path) for path in paths]
    assert all(file.schema_arrow.equals(SCHEMA) for file in files)
    groups = [[file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] for file in files]
    assert groups == [[4, 4, 2], [4, 4, 2], [3]]
    assert read_parquet(tmp_path, "test") == some_rows(23)


def test_a_full_last_file_is_not_followed_by_an_empty_one(tmp_path):
    assert len(write_parquet(some_rows(10), tmp_path, "train", rows_per_file=5)) == 2


def test_an_empty_split_is_a_file_without_rows(tmp_path):
    (path,) = write_parquet([], tmp_path, "train")
    assert pq.read_table(path).num_rows == 0 and path.name == "train-00000-of-00001.parquet"
    assert write_jsonl([], tmp_path, "train").read_text() == ""


def test_writing_again_replaces_the_split_and_leaves_the_others(tmp_path):
    write_parquet(some_rows(20), tmp_path, "train", rows_per_file=5)
    write_parquet(some_rows(2), tmp_path, "test")
    write_parquet(some_rows(3), tmp_path, "train")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"]
    assert read_parquet(tmp_path, "train") == some_rows(3)


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_the_same_rows_give_the_same_bytes(tmp_path, write):
    write(some_rows(), tmp_path / "a", "train")
    write(some_rows(), tmp_path / "b", "train")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_failed_split_leaves_the_former_one_alone(tmp_path, write):
    write(some_rows(2), tmp_path, "train")
    before = tree(tmp_path)

    def breaks():
        yield from some_rows(2)
        raise DataError("source", "broken")

    with pytest.raises(DataError):
        write(breaks(), tmp_path, "train")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_name_used_twice_or_a_missing_clip_is_refused(tmp_path, write):
    with pytest.raises(DataError, match="two rows have the sample_id") as refused:
        write(some_rows(1) * 2, tmp_path, "train")
    assert refused.value.reason == "duplicate sample_id"
    with pytest.raises(BadMedia) as refused:
        write([replace(some_rows(1)[0], media={"audio": (tmp_path / "gone.wav",)})], tmp_path, "train")
    assert refused.value.reason == "missing file"


def test_the_same_name_in_two_splits_keeps_its_own_clips(tmp_path):
    row = some_rows(1)[0]
    other = replace(row, media={"audio": (speak("anger", np.random.default_rng(1)),)})
    write_jsonl([row], tmp_path, "train")
    write_jsonl([other], tmp_path, "test")
    assert read_jsonl(tmp_path, "train") == [row] and read_jsonl(tmp_path, "test") == [other]


def test_jsonl_names_relative_paths_with_the_suffix_of_the_content(tmp_path):
    write_jsonl(some_rows(), tmp_path, "train")
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert list(records[0]) == SCHEMA.names
    assert records[1]["videos"][0] == "media/videos/meld_senti/train/two.mp4"
    assert [Path(path).suffix for record in records for path in record["audios"]] == [".wav"] * 3
    assert records[2]["modality_signature"] == "text_video_audio" and records[2]["class_label"] == ""


def test_the_task_column_says_domain_and_kind():
    assert {task_column(task) for task in BENCHMARK_TASKS} == {
        *("sentiment_cls", "emotion_cls", "ptsd_cls", "depression_cls", "anxiety_cls", "sarcasm_cls", "humour_cls"),
        *("social_qa", "intent_qa", "nonverbal_qa"),
    }
