from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hba_ray.convert.base import Converted
from hba_ray.convert.corpora.cremad import EMOTIONS, SENTENCES, actor, read_cremad
from hba_ray.convert.splits import check_disjoint
from hba_ray.data.rows import Row
from hba_ray.data.tasks import DATASETS
from hba_ray.errors import DataError


def names_in(folder: Path) -> list[str]:
    return pd.read_csv(folder / "SentenceFilenames.csv")["Filename"].tolist()


def write_names(folder: Path, *names: str) -> None:
    lines = ['"Stimulus_Number","Filename"', *(f'{number},"{name}"' for number, name in enumerate(names, 1))]
    (folder / "SentenceFilenames.csv").write_text("\n".join(lines), encoding="utf-8")


def rows_of(converted: Converted) -> dict[str, Row]:
    return {row.clip_id: row for rows in converted.rows.values() for row in rows}


def actors_apart(converted: Converted) -> None:
    pairs = [(actor(row.clip_id.removeprefix("cremad-")), split) for split, rows in converted.rows.items() for row in rows]
    check_disjoint([name for name, _ in pairs], [split for _, split in pairs], where="test")


def test_the_name_of_a_clip_gives_sentence_and_label(cremad: Path):
    row = rows_of(read_cremad(cremad))["cremad-1003_TSI_SAD_XX"]
    assert row.problem.startswith("The surface is slick.\nGiven above: a transcript. ")
    assert (row.label, row.answer, row.sample_id) == ("sad", "sad", "cremad-1003_TSI_SAD_XX")
    assert not row.media


def test_sound_is_attached_where_it_is_there(cremad: Path):
    (cremad / "AudioWAV").mkdir()
    for name in names_in(cremad):
        (cremad / "AudioWAV" / f"{name}.wav").write_bytes(b"clip")
    row = rows_of(read_cremad(cremad))["cremad-1001_DFA_ANG_XX"]
    assert row.media == {"audio": ((cremad / "AudioWAV" / "1001_DFA_ANG_XX.wav").absolute(),)}
    assert row.problem.startswith("<audio>\nDon't forget a jacket.\nGiven above: a sound recording and a transcript. ")
    (cremad / "AudioWAV" / "1001_DFA_ANG_XX.wav").unlink()
    with pytest.raises(DataError, match=r"line 2: .*1001_DFA_ANG_XX\.wav is not there"):
        read_cremad(cremad)
    assert len(rows_of(read_cremad(cremad, on_bad_row="drop"))) == 59


def test_the_one_clip_that_older_downloads_misname_is_found(tmp_path: Path):
    write_names(tmp_path, "1040_ITH_SAD_XX")
    (tmp_path / "AudioWAV").mkdir()
    (tmp_path / "AudioWAV" / "1040_ITH_SAD_X.wav").write_bytes(b"clip")
    row = rows_of(read_cremad(tmp_path))["cremad-1040_ITH_SAD_XX"]
    assert [Path(str(clip)).name for clip in row.media["audio"]] == ["1040_ITH_SAD_X.wav"]


@pytest.mark.parametrize("seed", range(5))
def test_no_actor_is_heard_in_two_splits_and_the_account_adds_up(cremad: Path, seed: int):
    converted = read_cremad(cremad, seed=seed)
    actors_apart(converted)
    assert [len(converted.rows[split]) for split in ("train", "validation", "test")] == [42, 12, 6]
    shifts = {split: sum(difference.rows for difference in its) for split, its in converted.differences.items()}
    assert shifts == {"validation": 3, "test": -3}


def test_by_clip_the_shares_are_exact(cremad: Path):
    converted = read_cremad(cremad, by_clip=True)
    assert [len(converted.rows[split]) for split in ("train", "validation", "test")] == [42, 9, 9]
    assert converted.differences == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1001_DFA_ANGRY_XX", "unknown label"),
        ("1001_XYZ_ANG_XX", "unknown sentence"),
        ("1001_DFA_ANG", "bad name"),
        ("abcd_DFA_ANG_XX", "bad name"),
        ("1001_DFA_ANG_ZZ", "bad name"),
        ("../1_DFA_ANG_XX", "bad name"),
        ("", "empty text"),
        ("1001_DFA_ANG_XX", "duplicate row"),
    ],
)
def test_a_bad_name_is_named_or_left_out(cremad: Path, name: str, reason: str):
    write_names(cremad, *names_in(cremad), name)
    with pytest.raises(DataError, match=r"SentenceFilenames\.csv, line 62") as caught:
        read_cremad(cremad)
    assert caught.value.reason == reason
    converted = read_cremad(cremad, on_bad_row="drop")
    assert [drop.reason for drop in converted.drops] == [reason]
    assert len(rows_of(converted)) == 60


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "missing column"),
        (b'"Stimulus_Number","Name"\n1,"x"\n', "missing column"),
        (b'"Stimulus_Number","Filename"\n', "no rows"),
        (b'"Stimulus_Number","Filename"\n1\n', "missing value"),
        (b'"Stimulus_Number","Filename"\n1,"1001_DFA_ANG_XX","more"\n', "missing value"),
        (b'"Stimulus_Number","Filename"\n1,"1001_DFA', "not CSV"),
        (b'"Stimulus_Number","Filename"\n1,"1001_DFA_\xff"\n', "not UTF-8"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, raw: bytes, reason: str):
    (tmp_path / "SentenceFilenames.csv").write_bytes(raw)
    with pytest.raises(DataError, match=r"SentenceFilenames\.csv") as caught:
        read_cremad(tmp_path)
    assert caught.value.reason == reason


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_whatever_bytes_are_there_give_rows_or_a_data_error(tmp_path: Path, tail: bytes):
    (tmp_path / "SentenceFilenames.csv").write_bytes(b'"Stimulus_Number","Filename"\n1,"1001_DFA_ANG_XX"\n' + tail)
    try:
        assert "cremad-1001_DFA_ANG_XX" in rows_of(read_cremad(tmp_path))
    except DataError as error:
        assert "SentenceFilenames.csv" in error.where


def test_every_code_has_its_label_and_the_sentences_are_twelve():
    assert len(SENTENCES) == 12
    assert tuple(EMOTIONS.values()) == DATASETS["cremad"].labels


def test_the_public_names_give_every_label(public_data: Path):
    names = pd.read_csv(public_data / "cremad" / "SentenceFilenames.csv")["Filename"]
    rows = rows_of(read_cremad(public_data / "cremad"))
    assert set(rows) == {f"cremad-{name}" for name in names}
    assert Counter(row.label for row in rows.values()) == Counter(names.str.split("_").str[2].map(EMOTIONS))
    assert len(rows) == 7442


def test_the_public_names_split_by_actor_or_exactly_by_clip(public_data: Path):
    by_actor = read_cremad(public_data / "cremad")
    actors_apart(by_actor)
    assert [len(by_actor.rows[split]) for split in ("train", "validation", "test")] == [5166, 1148, 1128]
    assert by_actor == read_cremad(public_data / "cremad", seed=0)
    assert by_actor.rows["test"] != read_cremad(public_data / "cremad", seed=1).rows["test"]
    by_clip = read_cremad(public_data / "cremad", by_clip=True)
    assert tuple(len(by_clip.rows[split]) for split in ("train", "validation", "test")) == DATASETS["cremad"].counts
