"""Which files of a folder are its rows, and what is said of those that are none."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.data.shards import LONGEST_LINE, find_shards
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec
from tests.helpers.hostile import hostile, outcome
from tests.helpers.hostile_rows import files, tables

ROW = {"problem": "<audio>\nWhich emotion?", "answer": "happy", "dataset": "cremad"}


def index_of(folder: Path, **changes) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(folder), **changes), folder)


def text_row(name: str) -> dict:
    return {**ROW, "problem": f"{name}: which emotion?", "sample_id": name}


def write(path: Path, *records: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def names(folder: Path, layout: str = "auto") -> list[tuple[str, str]]:
    return [(shard.name, shard.split) for shard in find_shards(folder, layout)]


def refusal(folder: Path, layout: str = "auto") -> str:
    with pytest.raises(DataError) as refused:
        find_shards(folder, layout)
    return str(refused.value)


def test_each_split_is_read_in_the_layout_that_it_has(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00001.parquet", text_row("a"), text_row("b"))
    write(tmp_path / "test.JSONL", text_row("c"))
    write(tmp_path / "dev.ndjson", text_row("d"))
    assert index_of(tmp_path).counts() == {"cremad": {"train": 2, "test": 1, "validation": 1}}
    assert names(tmp_path, "parquet") == [("train-00000-of-00001.parquet", "train")]
    assert [row.sample_id for row in read_rows(index_of(tmp_path), range(4)) if isinstance(row, Row)] == ["a", "b", "d", "c"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("test.jsonl.gz", "unpack it"),
        ("test.json", "jq -c 'if type == \"array\" then .[] else . end' test.json > test.jsonl"),
        ("validation-00000-of-00001.parquet.zst", "unpack it"),
        ("final_train.jsonl", "several jsonl files for one split: final_train.jsonl, train.jsonl"),
        ("train.parquet", "has the train split as parquet and as jsonl: train.jsonl, train.parquet"),
        ("train-00000-of-00002.jsonl", "several jsonl files"),
    ],
)
def test_no_file_of_a_split_is_left_out_in_silence(tmp_path, other, says):
    write(tmp_path / "train.jsonl", text_row("a"))
    (tmp_path / other).write_bytes(b"")
    assert says in refusal(tmp_path) and other in refusal(tmp_path)


def test_hidden_files_do_not_count(tmp_path):
    write(tmp_path / "train.parquet", text_row("a"))
    for name in ("._train.parquet", ".train.jsonl", ".train.json", "._test.jsonl"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert names(tmp_path) == [("train.parquet", "train")]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_numbered_parts_of_a_split_are_one_version_of_it(tmp_path, ending):
    for place in range(2):
        write(tmp_path / f"train-{place:05d}-of-00002.{ending}", text_row(f"row {place}"))
    assert index_of(tmp_path).counts() == {"cremad": {"train": 2}}
    write(tmp_path / f"train-00000-of-00001.{ending}", text_row("row 0"))
    assert "train-00000-of-00001" in refusal(tmp_path) and "keep one version" in refusal(tmp_path)


ODD_FILES = {
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "cannot be read": lambda path: path.symlink_to(path),
}


@pytest.mark.hostile("shards")
@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_only_regular_files_are_opened(tmp_path, kind, name):
    ODD_FILES[kind](tmp_path / name)
    assert name in refusal(tmp_path) and kind in refusal(tmp_path)


@pytest.mark.hostile("shards")
@pytest.mark.parametrize("kind", ODD_FILES)
def test_only_regular_files_are_clips(tmp_path, kind):
    write(tmp_path / "train.jsonl", {**ROW, "audios": ["a.wav"]})
    ODD_FILES[kind](tmp_path / "a.wav")
    with pytest.raises(DataError) as refused:
        index_of(tmp_path)
    assert refused.value.reason in ("not a file", "path leaves the atlas", "missing file")
    assert index_of_good_rows(tmp_path) == 1


def index_of_good_rows(folder: Path) -> int:
    """How many rows are left when one that is in order is added and bad ones are dropped."""
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(text_row("good")) + "\n")
    return len(index_of(folder, on_bad_row="drop").table)


@pytest.mark.parametrize(
    ("content", "says", "command"),
    [
        ("\n".join(map(json.dumps, [text_row("a")] * 2)).encode("utf-16"), "UTF-16", "iconv -f UTF-16"),
        (json.dumps(text_row("a")).encode("utf-16-le"), "UTF-16LE", "iconv -f UTF-16LE"),
        (json.dumps(text_row("a")).encode("utf-16-be"), "UTF-16BE", "iconv -f UTF-16BE"),
        (gzip.compress(json.dumps(text_row("a")).encode(), mtime=0), "is packed", "unpack it with gzip"),
        (json.dumps(text_row("a")).encode("utf-32"), "UTF-32", "iconv -f UTF-32"),
        (json.dumps([text_row("a")], indent=1).encode(), "one JSON array", "jq -c '.[]'"),
        (b"\xef\xbb\xbf [" + json.dumps(text_row("a")).encode() + b"]", "one JSON array", "jq -c '.[]'"),
        ("\r".join(map(json.dumps, [text_row("a")] * 2)).encode(), "CR alone", "tr '\\r' '\\n'"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["fail", "drop"])
def test_a_file_in_another_form_is_told_with_the_command_that_mends_it(tmp_path, content, says, command, on_bad_row):
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(DataError) as refused:
        index_of(tmp_path, on_bad_row=on_bad_row)
    assert "train.jsonl" in refused.value.where and says in refused.value.what and command in refused.value.way_out


def test_a_byte_order_mark_and_windows_line_ends_are_no_defect(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, [text_row("a"), text_row("b")])).encode())
    assert len(index_of(tmp_path).table) == 2


@pytest.mark.parametrize(
    ("line", "reason", "says"),
    [
        (b"[" * 200_000, "not JSON", "recursion"),
        (b'{"problem": "\xff"}', "not UTF-8", "byte 13"),
        (b'{"problem": "x', "not JSON", "control character"),
        (b'{"problem": "x", "answer": "a", "answer": "b"}', "not JSON", "'answer' occurs twice"),
        (b" " * LONGEST_LINE + b"{}", "line too long", "16 MiB"),
    ],
)
def test_a_bad_line_is_named_and_the_lines_behind_it_are_read(tmp_path, line, reason, says):
    good = [json.dumps(text_row(name)).encode() for name in "ab"]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join([good[0], line, good[1]]) + b"\n")
    with pytest.raises(DataError, match=says) as refused:
        index_of(tmp_path)
    assert refused.value.where == "train.jsonl row 1" and refused.value.reason == reason
    index = index_of(tmp_path, on_bad_row="drop")
    assert [row.sample_id for row in read_rows(index, [0, 1]) if isinstance(row, Row)] == ["a", "b"]


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("stated", "last", "wrong"),
    [
        (None, "text_video_audio", 0),
        (["text"] * 4, "text_video_audio", 3),
        (["sound", "", None, "text_audio"], "text_video_audio", 2),
        (["text_video", "text_audio", "text", "audio"], "video_audio", 3),
    ],
)
def test_the_clips_decide_what_a_parquet_row_holds(tmp_path, stated, last, wrong, statistics):
    """Some rows have a mark in their prompt, some have clips without a mark."""
    sounds, films = [[b"a"], [], None, [b"b", b"c"]], [None, [b"v"], [], [b"w"]]
    columns = {
        "problem": ["<audio>\nq", "q", "q", "q"],
        "answer": ["happy"] * 4,
        "dataset": ["cremad"] * 4,
        "audios": pa.array(sounds, pa.list_(pa.binary())),
        "videos": pa.array(films, pa.list_(pa.binary())),
        "sample_id": list("abcd"),
    }
    table = pa.table(columns | ({"modality_signature": stated} if stated else {}))
    pq.write_table(table, tmp_path / "train.parquet", write_statistics=statistics)
    index = index_of(tmp_path)
    assert index.table["modality_signature"].to_pylist() == ["text_audio", "text_video", "text", last]
    assert index.changes == ({"cremad": {"modality_signature that contradicts the clips": wrong}} if wrong else {})


def test_a_signature_that_agrees_stays_as_it_is_written(tmp_path):
    for name in ("train.parquet", "test.jsonl"):
        (tmp_path / "a.wav").touch()
        clip = b"a" if name.endswith("parquet") else "a.wav"
        write(tmp_path / name, {**ROW, "audios": [clip], "modality_signature": "audio", "sample_id": name})
    assert index_of(tmp_path).table["modality_signature"].to_pylist() == ["audio", "audio"]


def test_clips_are_not_read_where_the_file_says_how_many_there_are(toy, tmp_path):
    """The bytes of the clips are overwritten: whoever reads them finds a damaged file."""
    source = next(toy.parquet.glob("train-*.parquet"))
    content = bytearray(source.read_bytes())
    metadata = pq.ParquetFile(source).metadata
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            if column.path_in_schema.startswith(("audios", "videos")):
                start = column.dictionary_page_offset or column.data_page_offset
                content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    (tmp_path / source.name).write_bytes(content)
    whole = index_of(toy.parquet)
    assert (
        index_of(tmp_path).table["modality_signature"].to_pylist()
        == whole.take(whole.rows_of("train")).table["modality_signature"].to_pylist()
    )


def check_outcome(folder: Path, on_bad_row: str) -> None:
    """An atlas is read, or refused in one located error; what is read can be read again."""
    try:
        index = index_of(folder, on_bad_row=on_bad_row)
    except DataError as refused:
        assert refused.where and refused.reason and str(refused).encode()
        return
    for row in read_rows(index, range(len(index.table))):
        assert isinstance(row, Row | DataError)
    index.save(folder)
    assert AtlasIndex.load(folder).table.equals(index.table)


@hostile("rows", 150)
@given(files(), st.sampled_from(("fail", "drop")))
def test_any_jsonl_is_read_or_refused(tmp_path, content, on_bad_row):
    (tmp_path / "test.jsonl").write_bytes(content)
    outcome(lambda: check_outcome(tmp_path, on_bad_row))


@hostile("rows", 150)
@given(tables(), st.sampled_from(("fail", "drop")))
def test_any_parquet_is_read_or_refused(tmp_path, table, on_bad_row):
    pq.write_table(table, tmp_path / "test.parquet")
    outcome(lambda: check_outcome(tmp_path, on_bad_row))
