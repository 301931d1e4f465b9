from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hba_ray.convert.base import Converted
from hba_ray.convert.corpora.mustard import read_mustard, scenes
from hba_ray.convert.splits import check_disjoint
from hba_ray.data.rows import Row
from hba_ray.errors import DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def read_entries(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sarcasm_data.json").read_text(encoding="utf-8"))


def write_entries(folder: Path, entries: object) -> Path:
    (folder / "sarcasm_data.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def rows_of(converted: Converted) -> dict[str, Row]:
    return {row.sample_id: row for rows in converted.rows.values() for row in rows}


def test_the_transcript_is_the_context_and_the_line_with_their_speakers(mustard: Path):
    row = rows_of(read_mustard(mustard))["mmsd-1_3"]
    assert row.problem.startswith(
        "ANN: It rains.\nANN: For 3 days in a row now, without a pause.\nBEN: Number 3 is exactly the weather I ordered.\n"
        "Given above: a transcript. Judge the last line only"
    )
    assert (row.label, row.answer) == ("not sarcasm", "not sarcasm")
    assert row.problem.endswith("labels: not sarcasm, sarcasm.")


def test_a_line_without_context_is_a_prompt_of_one_line(mustard: Path):
    problem = rows_of(read_mustard(mustard))["mmsd-2_0"].problem
    assert problem.startswith("EVE: Who left the gate open last night?\nGiven above:")
    assert "last line" not in problem


def test_entries_that_share_a_long_line_are_one_scene_and_short_lines_do_not_count(mustard: Path):
    rows = rows_of(read_mustard(mustard))
    assert {rows[f"mmsd-2_{number}"].clip_id for number in range(3)} == {"mustard-2_0"}
    assert len({row.clip_id for row in rows.values()}) == 10


def test_scenes_are_joined_through_a_third_entry():
    long = "one two three four five"
    other = "six seven eight nine ten"
    assert scenes({"a": [long], "b": [other], "c": [other, long]}) == {"a": "a", "b": "a", "c": "a"}


@pytest.mark.parametrize("seed", range(8))
def test_a_scene_is_never_split(mustard: Path, seed: int):
    converted = read_mustard(mustard, seed=seed)
    assert sum(map(len, converted.rows.values())) == 12
    pairs = [(row.clip_id, split) for split, rows in converted.rows.items() for row in rows]
    check_disjoint([clip for clip, _ in pairs], [split for _, split in pairs], where="test")


@pytest.mark.parametrize("folder", ["utterances_final", "videos/utterances_final"])
def test_clips_are_attached_where_they_are_there(mustard: Path, folder: str):
    (mustard / folder).mkdir(parents=True)
    for name in read_entries(mustard):
        (mustard / folder / f"{name}.mp4").write_bytes(b"clip")
    row = rows_of(read_mustard(mustard))["mmsd-1_0"]
    assert row.signature == "text_video_audio"
    assert row.media["video"] == row.media["audio"] == ((mustard / folder / "1_0.mp4").absolute(),)
    (mustard / folder / "1_0.mp4").unlink()
    with pytest.raises(DataError, match=r"entry '1_0': .*1_0\.mp4 is not there"):
        read_mustard(mustard)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sarcasm": "yes"}, "unknown label"),
        ({"sarcasm": 1}, "unknown label"),
        ({"sarcasm": None}, "unknown label"),
        ({"utterance": " "}, "empty text"),
        ({"utterance": None}, "missing value"),
        ({"utterance": "watch <audio> this"}, "mark in text"),
        ({"utterance": "half a character: \ud83d"}, "not UTF-8"),
        ({"speaker": 3}, "wrong type"),
        ({"context": "It rains."}, "wrong type"),
        ({"context": ["It rains.", ""]}, "empty text"),
        ({"context_speakers": ["ANN"]}, "missing value"),
    ],
)
def test_a_bad_entry_is_named_or_left_out(mustard: Path, change: dict[str, Any], reason: str):
    entries = read_entries(mustard)
    entries["1_4"] |= change
    write_entries(mustard, entries)
    with pytest.raises(DataError, match=r"sarcasm_data\.json, entry '1_4'") as caught:
        read_mustard(mustard)
    assert caught.value.reason == reason
    converted = read_mustard(mustard, on_bad_row="drop")
    assert [drop.reason for drop in converted.drops] == [reason]
    assert len(rows_of(converted)) == 11


def test_a_name_that_is_a_path_is_refused(mustard: Path):
    entries = read_entries(mustard)
    entries["../1_0"] = entries.pop("1_0")
    with pytest.raises(DataError, match="is no name of a clip"):
        read_mustard(write_entries(mustard, entries))


def test_an_entry_that_occurs_twice_is_refused(mustard: Path):
    path = mustard / "sarcasm_data.json"
    path.write_text(path.read_text().replace('"1_1"', '"1_0"', 1))
    with pytest.raises(DataError, match="'1_0' occurs twice"):
        read_mustard(mustard)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"sarcasm_data\.json: cannot be read"):
        read_mustard(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.integers(1, 100_000), st.none() | st.sampled_from([0x80, 0xFF]))
def test_a_truncated_or_damaged_file_is_always_an_error(mustard: Path, cut: int, byte: int | None):
    path = mustard / "sarcasm_data.json"
    raw = path.read_bytes()
    kept = raw[: cut % len(raw)]
    path.write_bytes(kept if byte is None else kept + bytes([byte]) + raw[len(kept) + 1 :])
    try:
        with pytest.raises(DataError, match=r"sarcasm_data\.json"):
            read_mustard(mustard)
    finally:
        path.write_bytes(raw)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(JSON, st.sampled_from(["utterance", "speaker", "context", "context_speakers", "sarcasm", None]))
def test_whatever_json_is_there_gives_rows_or_a_data_error(mustard: Path, value: object, key: str | None):
    entries = read_entries(mustard)
    changed = value if key is None else {**entries, "1_0": {**entries["1_0"], key: value}}
    try:
        assert len(rows_of(read_mustard(write_entries(mustard, changed)))) == 12
    except DataError as error:
        assert "sarcasm_data.json" in error.where
    finally:
        write_entries(mustard, entries)


def test_the_public_file_gives_table_7_and_every_label(public_data: Path):
    converted = read_mustard(public_data / "mustard")
    assert [len(converted.rows[split]) for split in ("train", "validation", "test")] == [483, 104, 103]
    entries = read_entries(public_data / "mustard")
    rows = rows_of(converted)
    assert {name: rows[f"mmsd-{name}"].label == "sarcasm" for name in entries} == {
        name: entry["sarcasm"] for name, entry in entries.items()
    }
    assert Counter(row.label for row in rows.values()) == {"sarcasm": 345, "not sarcasm": 345}
    assert (converted.drops, converted.differences) == ([], {})


def test_no_public_line_of_eight_words_is_in_two_splits(public_data: Path):
    lines, splits = [], []
    for split, rows in read_mustard(public_data / "mustard").rows.items():
        for row in rows:
            for line in row.problem.split("\nGiven above:")[0].split("\n"):
                if len(line.split()) > 8:
                    lines.append(line.lower())
                    splits.append(split)
    assert set(splits) == {"train", "validation", "test"}
    check_disjoint(lines, splits, where="MUStARD")


def test_a_seed_gives_the_same_split_each_time_and_another_seed_another(public_data: Path):
    first = read_mustard(public_data / "mustard")
    assert first == read_mustard(public_data / "mustard", seed=0)
    other = read_mustard(public_data / "mustard", seed=1)
    assert first.rows["test"] != other.rows["test"]
    assert len(other.rows["test"]) == 103
