"""Rows that are there twice: found with both places when an atlas is indexed, whatever its layout, and told where splits share them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.rows import Row
from hba_ray.errors import DataError
from hba_ray.specs import AtlasSpec
from hba_ray.specs.base import identity_values


def row(clip: bytes | None = None, **changes) -> dict:
    heard = {"problem": "<audio>\nWhich emotion?", "audios": [clip]} if clip else {"problem": "Which emotion?", "audios": []}
    return {**heard, "answer": "happy", "dataset": "cremad", **changes}


def parquet(folder: Path, split: str, *rows: dict, group: int = 2) -> None:
    table = pa.Table.from_pylist(
        list(rows), pa.schema([(name, pa.string()) for name in rows[0] if name != "audios"] + [("audios", pa.list_(pa.binary()))])
    )
    pq.write_table(table, folder / f"{split}.parquet", row_group_size=group)


def jsonl(folder: Path, split: str, *rows: dict) -> None:
    lines = []
    for number, one in enumerate(rows):
        names = [f"{split}-{number}.wav" for _ in one["audios"]]
        for name, clip in zip(names, one["audios"], strict=True):
            (folder / name).write_bytes(clip)
        lines.append(json.dumps({**one, "audios": names}))
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def index_of(folder: Path, **changes) -> AtlasIndex:
    return build_index(AtlasSpec(root=str(folder), **changes), folder)


def test_a_parquet_row_without_an_id_that_is_there_twice_is_found_with_both_places(tmp_path):
    parquet(tmp_path, "test", row(b"one"), row(b"two"), row(b"three"), row(b"two"), row(answer="sad"))
    with pytest.raises(DataError) as refused:
        index_of(tmp_path)
    assert refused.value.where == "test.parquet row 1 of group 1 (cremad)"
    assert "test.parquet row 1 of group 0" in refused.value.what and refused.value.reason == "duplicate sample"
    index = index_of(tmp_path, on_bad_row="drop")
    assert [(drop.row, drop.reason) for drop in index.drops] == [("test.parquet row 1 of group 1 (cremad)", "duplicate sample")]
    ids = [one.sample_id for one in read_rows(index, range(4)) if isinstance(one, Row)]
    assert len(index.table) == len(set(ids)) == 4


def test_training_may_see_a_row_twice(tmp_path):
    parquet(tmp_path, "train", row(b"one"), row(b"one"))
    assert len(index_of(tmp_path).table) == 2


def test_rows_without_a_clip_are_told_apart_by_their_text(tmp_path):
    parquet(tmp_path, "test", row(), row(answer="sad"), row())
    with pytest.raises(DataError, match=r"has the id of test\.parquet row 0 of group 0"):
        index_of(tmp_path)


@pytest.mark.parametrize("of_train", [parquet, jsonl])
@pytest.mark.parametrize("of_test", [parquet, jsonl])
@pytest.mark.parametrize("ids", [True, False])
def test_rows_that_two_splits_share_are_told_by_content(tmp_path, of_train, of_test, ids):
    """Clips of one size under other names are compared by their bytes; other ids make no other rows."""
    shared, alone = (b"one", b"two"), (b"six", b"ten")
    name = lambda split, number: {"sample_id": f"{split}-{number}"} if ids else {}  # noqa: E731
    of_train(tmp_path, "train", *(row(clip, **name("train", place)) for place, clip in enumerate((*shared, alone[0]))))
    of_test(tmp_path, "test", *(row(clip, **name("test", place)) for place, clip in enumerate((alone[1], *shared))))
    (leak,) = index_of(tmp_path).leaks
    assert (leak.dataset, leak.split, leak.other, leak.kind, leak.rows, len(leak.samples)) == ("cremad", "test", "train", "row", 2, 2)
    assert not ids or leak.samples == ("test-1", "test-2")
    assert str(leak).startswith("cremad: rows of test that are in train, too: 2 ('")


def test_an_id_that_two_splits_share_is_told_where_the_rows_differ(tmp_path):
    parquet(tmp_path, "train", *(row(clip, sample_id=name) for clip, name in ((b"one", "a"), (b"two", "b"))))
    parquet(tmp_path, "validation", row(b"six", sample_id="a"), row(b"two", sample_id="b"))
    found = [(leak.kind, leak.rows, leak.samples) for leak in index_of(tmp_path).leaks]
    assert found == [("row", 1, ("b",)), ("sample_id", 1, ("a",))]


def test_a_leak_holds_all_rows_and_a_sentence_names_some(tmp_path):
    rows = [row(problem=f"question {number}", sample_id=f"id {number}") for number in range(30)]
    for split in ("train", "test"):
        parquet(tmp_path, split, *rows)
    (leak,) = index_of(tmp_path).leaks
    assert leak.rows == len(set(leak.samples)) == 30 and str(leak).endswith("'id 9', …)")


def test_a_leak_can_be_refused(tmp_path):
    for split in ("train", "test"):
        parquet(tmp_path, split, row(b"one"))
    with pytest.raises(DataError, match=r"rows of test that are in train, too: 1 \('cremad-.*\n.*atlas\.leaks=tell") as refused:
        index_of(tmp_path, leaks="refuse")
    assert refused.value.reason == "leak between splits"
    assert "leaks" not in identity_values(AtlasSpec(root="x")) and "leaks" in identity_values(AtlasSpec(root="x", leaks="refuse"))


def test_a_row_of_another_dataset_is_another_row(tmp_path):
    parquet(tmp_path, "train", row(b"one"))
    parquet(tmp_path, "test", row(b"one", dataset="meld_emotion"))
    assert index_of(tmp_path).leaks == ()


@pytest.mark.parametrize("layout", [parquet, jsonl])
def test_a_row_that_is_there_again_under_another_id_is_told_and_kept(tmp_path, layout):
    rows = [row(clip, sample_id=name) for clip, name in ((b"one", "a"), (b"two", "b"), (b"one", "c"), (b"six", "d"), (b"one", "e"))]
    layout(tmp_path, "test", *rows)
    layout(tmp_path, "train", row(b"ten", sample_id="f"), row(b"ten", sample_id="g"))
    index = index_of(tmp_path, leaks="refuse")
    assert [str(leak) for leak in index.leaks] == ["cremad: rows of test that are there once more under another id: 2 ('c', 'e')"]
    assert len(index.table) == 7
