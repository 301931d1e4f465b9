"""What the doctor's tables say of an atlas."""

from collections import Counter

import pyarrow as pa

from hba_ray.actions.check_atlas import Clips, Health, clip_sheet, descriptor_sheet, modality_sheet, row_sheet
from hba_ray.data.atlas import INDEX_SCHEMA, AtlasIndex


def index(*rows: tuple[str, str, str]) -> AtlasIndex:
    """(split, dataset, signature) of each row."""
    table = pa.Table.from_pylist(
        [{"split": split, "dataset": dataset, "modality_signature": signature} for split, dataset, signature in rows], INDEX_SCHEMA
    )
    return AtlasIndex("atlas", (), table)


ATLAS = index(("train", "cremad", "text_audio"), ("test", "cremad", "text"), ("train", "toy_nod", "text_video_audio"))


def test_rows_stand_beside_table_7_with_their_difference():
    sheet = row_sheet(ATLAS)
    assert ("cremad", "train", "1", "5209", "-5208") in sheet.rows
    assert ("toy_nod", "train", "1", "–", "–") in sheet.rows and ("cremad", "validation", "0", "1116", "-1116") in sheet.rows


def test_modalities_are_counted_beside_table_2():
    sheet = modality_sheet(ATLAS)
    assert sheet.header[:2] == ("dataset", "rows")
    rows = {row[0]: dict(zip(sheet.header, row, strict=True)) for row in sheet.rows}
    assert [rows["cremad"][name] for name in ("rows", "text", "audio", "video")] == ["2", "2", "1", "0"]
    assert rows["cremad"]["Table 2"] == "text, audio" and rows["toy_nod"]["video"] == "1"


def test_clips_say_lengths_silence_and_damage():
    clips = [
        Clips("cremad", "audio", 4, [30.0, 90.0], silent=1, longer=2, bad=Counter({"corrupt audio": 2})),
        Clips("meld_senti", "video", 1, [], black=1, bad=Counter({"empty file": 1})),
    ]
    sheet = clip_sheet(clips, {"missing file": 3})
    assert sheet.rows[0] == ("cremad", "audio", "4", "2.0", "30.00", "90.00", "1", "–", "2", "corrupt audio: 2")
    assert sheet.rows[1] == ("meld_senti", "video", "1", "–", "–", "–", "–", "1", "–", "empty file: 1")
    assert sheet.notes == ("Rows that could not be read: missing file: 3.",)


def test_descriptors_say_what_is_missing_and_where_no_face_is():
    health = [
        Health("meld_senti", "pose", 10, 9, 7, 1, {"truncated video": 1}, faceless=2, face_share=0.625),
        Health("cremad", "acoustic", 5, 5, 5, 0, {}, silent=1, seconds=120.0),
    ]
    pose, acoustic = descriptor_sheet(health).rows
    assert pose == ("pose", "meld_senti", "10", "9", "7", "1", "truncated video: 1", "2", "62.5%", "–", "–")
    assert acoustic == ("acoustic", "cremad", "5", "5", "5", "0", "0", "–", "–", "1", "2.0")
