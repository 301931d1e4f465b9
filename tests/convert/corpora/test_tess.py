from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hba_ray.convert.splits import check_disjoint
from hba_ray.data.tasks import DATASETS, SPLITS
from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, labels, sizes
from tests.helpers.corpora import put, tiny_sound, write_tess


@pytest.fixture(scope="module")
def tess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tess(tmp_path_factory.mktemp("tess"))


def test_every_clip_counts_once_though_the_tree_is_there_twice(tess: Path):
    made = converted("tess", tess)
    assert sizes(made) == [98, 28, 14]
    assert all(set(labels(made, split).values()) == {len(made.rows[split]) // 7} for split in SPLITS)
    assert set(labels(made, "train")) == set(DATASETS["tess"].labels)


def test_a_word_is_in_one_split_and_both_speakers_in_all(tess: Path):
    made = converted("tess", tess)
    pairs = [(*row.clip_id.removeprefix("tess-").split("_")[:2], split) for split in SPLITS for row in made.rows[split]]
    check_disjoint([word for _, word, _ in pairs], [split for *_, split in pairs], where="test")
    assert {(speaker, split) for speaker, _, split in pairs} == {(speaker, split) for speaker in ("OAF", "YAF") for split in SPLITS}
    assert "Both speakers are heard in all splits" in made.rules[0]


def test_by_clip_the_shares_are_exact(tess: Path):
    assert sizes(converted("tess", tess, split_by="clip")) == [98, 21, 21]


def test_the_published_size_meets_table_7_by_word(tmp_path: Path):
    words = [a + b + "o" for a in "bcdfghjklmnprstvwxyz" for b in "aeiouaeiou"[:5]] + [
        a + "u" + b for a in "bcdfghjklm" for b in "nprstvwxyz"
    ]
    assert len(set(words)) == 200
    for speaker in ("OAF", "YAF"):
        for code in ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad"):
            for word in words:
                put(tmp_path / f"{speaker}_{word}_{code}.wav", b"")
    made = converted("tess", tmp_path)
    assert tuple(sizes(made)) == DATASETS["tess"].counts
    assert Counter(row.label for rows in made.rows.values() for row in rows) == dict.fromkeys(DATASETS["tess"].labels, 400)


def test_the_file_name_tells_the_emotion_and_the_one_that_lacks_a_letter_is_understood(tess: Path):
    rows = by_sample(converted("tess", tess))
    assert rows["tess-OAF_bath_neutral"].label == "neutral"
    assert rows["tess-YAF_cool_ps"].label == "surprise"
    assert rows["tess-OAF_bath_fear"].problem.startswith("<audio>\nSay the word bath.\n")
    split = by_sample(converted("tess", tess, split_surprise=True))["tess-YAF_cool_ps"]
    assert split.label == "positive surprise"
    assert "positive surprise, negative surprise" in split.problem


@pytest.mark.parametrize(
    ("name", "reason"), [("OAF_bath_calm.wav", "unknown label"), ("XAF_bath_sad.wav", "bad name"), ("bath.wav", "bad name")]
)
def test_other_names_are_refused_or_left_out(tmp_path: Path, name: str, reason: str):
    put(tmp_path / name, tiny_sound())
    with pytest.raises(DataError, match=name) as caught:
        converted("tess", tmp_path)
    assert caught.value.reason == reason
    assert [drop.reason for drop in converted("tess", tmp_path, on_bad_row="drop").drops] == [reason]


def test_a_folder_without_sound_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no \.wav file"):
        converted("tess", tmp_path)
