from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hba_ray.data.rows import LABEL_FILLED, LABEL_UNSEEN, MEDIA_COLUMNS, SCHEMA, parse_row
from hba_ray.errors import BadMedia, DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.binary(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


def record(**changes: Any) -> dict[str, Any]:
    return {"problem": "<audio>\nHm.\nWhich emotion?", "answer": "sad", "dataset": "cremad", "audios": [b"clip"]} | changes


def reason_of(columns: dict[str, Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        parse_row(columns, where="row 5", **options)
    assert caught.value.where.startswith("row 5")
    return caught.value.reason


def test_a_released_record_becomes_a_row():
    row = parse_row(record(class_label="Sadness", images=[], videos=None, modality_signature="text_audio"), where="test")
    assert (row.dataset.id, row.label, row.answer, row.signature) == ("cremad", "sad", "sad", "text_audio")
    assert row.media == {"audio": (b"clip",)}
    assert row.descriptors == {}


def test_the_answer_stands_in_for_a_missing_class_label():
    for stated in (None, ""):
        assert parse_row(record(class_label=stated, answer="Angry"), where="test").label == "anger"


def test_an_open_answer_has_no_label():
    row = parse_row(record(dataset="siq2", answer="She is glad.", class_label="ignored"), where="test")
    assert (row.label, row.answer) == (None, "She is glad.")


def test_the_signature_lists_what_is_there_in_the_released_order():
    media = {"videos": [b"v"], "images": [b"i"], "audios": [b"a"]}
    assert parse_row(record(problem="Hm.", **media), where="test").signature == "text_image_video_audio"
    assert parse_row(record(problem="Hm.", audios=[]), where="test").signature == "text"


def test_ids_follow_the_content_and_nothing_else():
    first = parse_row(record(), where="a")
    assert (first.sample_id, first.clip_id) == (parse_row(record(), where="b").sample_id, parse_row(record(), where="b").clip_id)
    other = parse_row(record(answer="angry"), where="a")
    assert other.clip_id == first.clip_id
    assert other.sample_id != first.sample_id
    assert parse_row(record(audios=[b"other"]), where="a").clip_id != first.clip_id


def test_stated_ids_are_kept():
    row = parse_row(record(sample_id="s", clip_id="c"), where="test")
    assert (row.sample_id, row.clip_id) == ("s", "c")


def test_paths_are_resolved_under_the_root_and_name_the_clip(tmp_path: Path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "one.wav").write_bytes(b"clip")
    row = parse_row(record(audios=["clips/one.wav"]), where="test", root=tmp_path)
    assert row.media == {"audio": ((tmp_path / "clips" / "one.wav").resolve(),)}
    assert row.clip_id == "clips/one"


def test_paths_may_not_leave_the_root(tmp_path: Path):
    root = tmp_path / "atlas"
    root.mkdir()
    (tmp_path / "secret.wav").write_bytes(b"clip")
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    for path in ("../secret.wav", str(tmp_path / "secret.wav"), "link.wav"):
        assert reason_of(record(audios=[path]), root=root) == "path leaves the atlas"
    assert reason_of(record(audios=["not/there.wav"]), root=root) == "missing file"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problem": None}, "missing column"),
        ({"answer": 3}, "wrong type"),
        ({"problem": " \n"}, "empty text"),
        ({"dataset": "cremadd"}, "unknown dataset"),
        ({"class_label": 2}, "wrong type"),
        ({"class_label": "sadd"}, "unknown label"),
        ({"audios": "clip.wav"}, "wrong type"),
        ({"audios": b"clip"}, "wrong type"),
        ({"audios": [3]}, "wrong type"),
        ({"audios": ["clip.wav"]}, "wrong type"),
        ({"audios": []}, "clips do not match marks"),
        ({"ext_video_feats": 1}, "wrong type"),
        ({"sample_id": 3}, "wrong type"),
    ],
)
def test_a_bad_record_has_a_countable_reason(changes: dict[str, Any], reason: str):
    assert reason_of(record(**changes)) == reason


@pytest.mark.parametrize("column", ["problem", "answer", "dataset"])
def test_a_missing_column_is_named(column: str):
    columns = record()
    del columns[column]
    with pytest.raises(DataError, match=f"column '{column}' is missing"):
        parse_row(columns, where="test")


@given(st.dictionaries(st.sampled_from(SCHEMA.names), VALUES), st.booleans())
def test_whatever_a_record_holds_it_is_a_row_or_a_data_error(changes: dict[str, Any], from_jsonl: bool):
    columns = record(sample_id="s", clip_id="c") | {name: value for name, value in changes.items() if name not in ("sample_id", "clip_id")}
    try:
        row = parse_row(columns, where="test", root=Path(__file__).parent if from_jsonl else None)
    except DataError as error:
        assert error.reason
    else:
        assert row.label in row.dataset.labels or row.dataset.task.is_open
        assert set(row.media) <= set(MEDIA_COLUMNS)


def test_a_clip_id_that_is_no_text_is_refused():
    assert reason_of(record(clip_id=5)) == "wrong type"


@pytest.mark.parametrize("value", [0, [], False])
def test_an_empty_id_of_another_type_is_refused(value: object):
    assert reason_of(record(clip_id=value)) == "wrong type"


def test_half_a_character_is_refused():
    assert reason_of(record(problem="Hm \ud83d", audios=[])) == "not Unicode"


@pytest.mark.parametrize("error", [DataError("row 1", "is bad", "mend it", reason="bad"), BadMedia("clip", "is cut", reason="cut")])
def test_a_data_error_survives_the_way_between_processes(error: DataError):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.where, again.what, again.way_out, again.reason) == (
        type(error),
        error.where,
        error.what,
        error.way_out,
        error.reason,
    )


@pytest.mark.parametrize(
    ("stated", "told"),
    [("sad", ()), (None, (LABEL_FILLED,)), ("", (LABEL_FILLED,)), (" Sad\u200b", (LABEL_UNSEEN,)), ("sad ", (LABEL_UNSEEN,)), ("Sad", ())],
)
def test_a_class_that_is_filled_in_or_holds_what_nobody_sees_is_told(stated: str | None, told: tuple[str, ...]):
    row = parse_row(record(class_label=stated), where="row 1")
    assert row.label == "sad" and row.changes == told


def test_a_row_without_the_column_of_classes_has_none_filled_in():
    row = parse_row(record(), where="row 1")
    assert row.label == "sad" and row.changes == ()
