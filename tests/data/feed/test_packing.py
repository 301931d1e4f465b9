"""A packed row gives what the row itself gives: the same micro-batches, the same errors. Packing goes on where it was broken off."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hba_ray.data.atlas import AtlasIndex, build_index, read_rows
from hba_ray.data.clips import decode_clips
from hba_ray.data.feed.batches import BatchMaker, BatchSettings
from hba_ray.data.feed.order import Order, plan_epoch
from hba_ray.data.feed.packing import Packing
from hba_ray.data.feed.spread import spread_here
from hba_ray.data.feed.stream import make_here
from hba_ray.data.packed import Pack, clip_record, shard_file
from hba_ray.data.rows import Row
from hba_ray.errors import BadMedia, DataError
from hba_ray.models.backbone import load_processor
from hba_ray.specs import AtlasSpec, MediaSpec
from tests.data.feed.test_stream import assert_same
from tests.helpers.damaged_rows import with_broken_clip

MEDIA = MediaSpec(audio_seconds=1, video_frames=2, video_pixels=56 * 56)
SETTINGS = BatchSettings(MEDIA, ("text", "audio", "video", "image"), micro_batch=3, on_bad_row="drop")


def packed(index: AtlasIndex, folder: Path) -> AtlasIndex:
    Packing(index, MEDIA, folder).write(spread_here)
    return replace(index, pack=Pack(str(folder)))


@pytest.fixture(scope="module")
def released(toy, tmp_path_factory) -> AtlasIndex:
    """An atlas like the released one: its rows have no ids, which follow from the bytes of their clips."""
    folder = tmp_path_factory.mktemp("released")
    for file in toy.parquet.glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["sample_id", "clip_id"]), folder / file.name, row_group_size=20)
    return build_index(AtlasSpec(root=str(folder)), folder)


def test_micro_batches_of_a_pack_are_those_of_the_clips(released, toy, tiny_backbone, tmp_path):
    broken, _ = with_broken_clip(toy.jsonl, tmp_path / "broken")
    processor = load_processor(str(tiny_backbone))
    for number, index in enumerate((released, broken)):
        windows = plan_epoch(index, Order("train", 24, 3, seed=1))[:2]
        stored, made = (
            list(make_here(BatchMaker(one, SETTINGS, processor, "train"), windows))
            for one in (index, packed(index, tmp_path / f"pack{number}"))
        )
        assert_same(made, stored)
    assert [drop.reason for batch in made for drop in batch.drops] == ["truncated audio"]


def test_a_part_of_an_index_finds_its_own_rows_and_their_transcripts_in_the_pack(released, tmp_path):
    index = replace(released, transcripts={3: "what is said"})
    whole, lines = packed(index, tmp_path), np.array([30, 3, 7])
    for row, expected in zip(read_rows(whole.take(lines), [0, 1, 2]), read_rows(index.take(lines), [0, 1, 2]), strict=True):
        assert isinstance(row, Row) and isinstance(expected, Row)
        assert (row.sample_id, row.clip_id, row.problem, row.signature) == (
            expected.sample_id,
            expected.clip_id,
            expected.problem,
            expected.signature,
        )


def test_bad_rows_and_bad_clips_raise_what_they_raise_themselves(toy, tmp_path):
    index, _ = with_broken_clip(toy.jsonl, tmp_path / "broken")
    gone = next(row for row in read_rows(index, range(9)) if isinstance(row, Row) and "video" in row.media).media["video"][0]
    gone.unlink()
    said = []
    for one in (index, packed(index, tmp_path / "pack")):
        said.append([])
        for row in read_rows(one, range(len(index.table))):
            try:
                if isinstance(row, DataError):
                    raise row
                decode_clips(row, MEDIA, where=row.sample_id)
            except DataError as bad:
                said[-1].append((type(bad), bad.where, bad.what, bad.way_out, bad.reason))
    assert said[0] == said[1]
    assert {(kind, reason) for kind, *_, reason in said[0]} == {(DataError, "missing file"), (BadMedia, "truncated audio")}


def test_packing_goes_on_where_it_was_broken_off(released, tmp_path):
    packed(released, tmp_path)
    files = sorted(tmp_path.rglob("*.arrow"))
    content = [file.read_bytes() for file in files]
    assert len(files) > 1
    files[1].unlink()
    (files[1].parent / f".{files[1].name}.draft").write_bytes(b"half a file")
    files[0].write_bytes(b"left alone")
    told: list[int] = []
    Packing(released, MEDIA, tmp_path).write(spread_here, told.append)
    assert files[1].read_bytes() == content[1] and files[0].read_bytes() == b"left alone"
    assert len(told) == 2 and sum(told) == len(released.table)
    (bad,) = read_rows(replace(released, pack=Pack(str(tmp_path))), [0])
    assert isinstance(bad, DataError) and "000000.arrow: cannot be read" in str(bad)


def test_sound_of_16_bits_is_kept_as_such_and_other_sound_as_it_is():
    whole = (np.array([-(2**15), -1, 0, 1, 2**15 - 1]) / 2**15).astype(np.float32)
    for samples_T, dtype in ((whole, "<i2"), (whole * np.float32(0.3), "<f4"), (np.array([1.0], np.float32), "<f4")):
        assert clip_record("audio", samples_T, 1.0)["dtype"] == dtype


def test_a_row_that_is_not_in_the_pack_is_told_with_a_way_out(released, tmp_path):
    index = packed(released, tmp_path)
    other = index.table.set_column(1, "group", pa.array([99] * len(index.table), pa.int64()))
    assert shard_file(tmp_path, 0).exists()
    with pytest.raises(DataError, match="holds no row"):
        Pack(str(tmp_path)).row((0, other["group"][0].as_py(), 0))
