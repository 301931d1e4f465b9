"""Rows enter an atlas as clean text, whatever their source, and what was changed is counted and told."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hba_ray.convert.corpora.meld import read_meld
from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.feed.batches import BatchMaker, BatchSettings
from hba_ray.data.prompts import withhold
from hba_ray.data.rows import Row
from hba_ray.data.shards import records
from hba_ray.data.tasks import SPLITS
from hba_ray.data.writers import write_jsonl
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec, MediaSpec
from hba_ray.store.folders import Storage

ROW = {"problem": "What happens?", "answer": "She waves.", "dataset": "siq2"}


def index_of(folder: Path, **changes) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(folder), **changes), folder)


def write(folder: Path, layout: str, *rows: dict) -> None:
    if layout == "parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), folder / "train.parquet")
    else:
        (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def read(folder: Path, **changes) -> list[Row]:
    index = index_of(folder, **changes)
    return [row for row in read_rows(index, range(len(index.table))) if isinstance(row, Row)]


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_both_layouts_are_cleaned_and_counted_by_one_rule(tmp_path, layout):
    odd = {**ROW, "problem": "She\x92s <|im_end|>?", "answer": "Cafe\u0301</s>"}
    write(tmp_path, layout, ROW, odd, {**ROW, "problem": "a\0b"})
    index = index_of(tmp_path)
    assert [(row.problem, row.answer) for row in read(tmp_path)] == [
        ("What happens?", "She waves."), ("She’s < |im_end|>?", "Café< /s>"), ("ab", "She waves."),
    ]  # fmt: skip
    assert index.changes == {"siq2": {"C1 characters": 1, "normal form": 1, "control tokens": 1, "control characters": 1}}
    assert list(index.texts("train"))[2:4] == ["She’s < |im_end|>?", "Café< /s>"]


@pytest.mark.parametrize("layout", ["parquet", "jsonl"])
def test_rows_without_such_characters_stay_byte_for_byte(toy, layout):
    index = index_of(getattr(toy, layout))
    assert index.changes == {}
    written = [found.columns for shard in index.shards for found in records(shard)]
    rows = [row for row in read_rows(index, range(len(index.table))) if isinstance(row, Row)]
    assert len(rows) == len(written) > 0
    assert [(row.problem, row.answer, row.sample_id) for row in rows] == [
        (one["problem"], one["answer"], one["sample_id"]) for one in written if isinstance(one, dict)
    ]
    assert [row.signature for row in rows] == index.table["modality_signature"].to_pylist()


def test_a_converted_atlas_is_cleaned_when_it_is_read(tmp_path):
    """As in MELD's files before they were corrected."""
    header = "Utterance,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}_sent_emo.csv").write_text(header + '"It\x92s fine \x96 really\x85",joy,positive,0,0\n', encoding="utf-8")
    for split in SPLITS:
        write_jsonl(read_meld(tmp_path).rows[split], tmp_path / "atlas", split)
    for row in read(tmp_path / "atlas"):
        assert row.problem.startswith("It’s fine – really…\n")


def test_transcripts_are_clean_too(tmp_path):
    from dataclasses import replace

    write(tmp_path, "jsonl", ROW)
    index = replace(index_of(tmp_path), transcripts={0: "so <|endoftext|> they\x92d say"})
    (row,) = read_rows(index, [0])
    assert isinstance(row, Row) and row.problem == "so < |endoftext|> they’d say\nWhat happens?"
    assert next(index.texts("train")) == "so < |endoftext|> they’d say"


def test_a_batch_reads_control_tokens_as_text(tmp_path, tiny_backbone):
    """A mark that is withheld may not join the halves of a token either."""
    from hba_ray.models.backbone import load_processor

    processor = load_processor(str(tiny_backbone))
    odd = {"problem": "<|AUDIO|> <|vision_start|><<audio>|im_end|> What happens?", "answer": "<|im_end|>She waves."}
    (tmp_path / "a.wav").touch()
    write(tmp_path, "jsonl", ROW, {**ROW, **odd, "audios": ["a.wav"]})
    rows = [withhold(row, ("text",)) for row in read(tmp_path)]
    settings = BatchSettings(MediaSpec(audio_seconds=1, video_frames=2, video_pixels=3136), ("text",), 2)
    maker = BatchMaker(index_of(tmp_path), settings, processor, "train")
    special = set(processor.tokenizer.added_tokens_decoder)
    found = []
    for row in rows:
        batch = maker.batch([row], [])
        found.append([token for token in batch.inputs["input_ids"][0].tolist() if token in special])
    assert found[0] == found[1] and found[0]


@pytest.mark.parametrize("dataset", ["cremad\ud800", "happy\u200b", "", ["cremad"], None])
@pytest.mark.parametrize("layout", ["jsonl"])
def test_a_dataset_s_name_can_always_be_written_down(tmp_path, dataset, layout):
    write(tmp_path, layout, ROW, {**ROW, "dataset": dataset})
    index = index_of(tmp_path, on_bad_row="drop")
    assert len(index.table) == len(index.drops) == 1
    (Storage(tmp_path / "runs").folder / "drops").write_text(index.drops[0].dataset, encoding="utf-8")


def test_a_label_that_nobody_can_see_is_shown_or_understood(tmp_path):
    label = {"dataset": "cremad", "answer": "hap\u2060py\u200b"}
    write(tmp_path, "jsonl", ROW | label)
    assert read(tmp_path)[0].label == "happy"
    write(tmp_path, "jsonl", ROW | label | {"answer": "happ\u0443\u200b"})
    with pytest.raises(DataError, match=r"'happу\\u200b' is not a label of cremad .*\n  did you mean 'happy'\?"):
        index_of(tmp_path)


def test_a_coarse_label_is_told_what_it_may_mean(tmp_path):
    write(tmp_path, "jsonl", ROW | {"dataset": "chsimsv2", "answer": "positive"})
    with pytest.raises(DataError, match="say which is meant: weakly positive or highly positive"):
        index_of(tmp_path)


@pytest.mark.parametrize(
    ("answer", "label", "found"),
    [
        ("happy", "sad", None),
        ("Joy", "happy", "happy"),
        ("She smiles.", "sad", "sad"),
        ("happy", "", "happy"),
        ("surprise", "positive surprise", "surprise"),
    ],
)
def test_an_answer_that_is_another_label_is_a_contradiction(tmp_path, answer, label, found):
    write(tmp_path, "jsonl", ROW, {**ROW, "dataset": "meld_emotion", "answer": answer, "class_label": label})
    index = index_of(tmp_path, on_bad_row="drop")
    assert [drop.reason for drop in index.drops] == ([] if found else ["answer contradicts label"])
    assert index.table["label"].to_pylist()[1:] == ([found] if found else [])
