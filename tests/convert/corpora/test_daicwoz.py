from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.errors import DataError
from tests.helpers.converted import by_sample, converted, drops, labels, sizes
from tests.helpers.corpora import APPLE_DOUBLE, put, write_daicwoz


@pytest.fixture
def daicwoz(tmp_path: Path) -> Path:
    return write_daicwoz(tmp_path)


def transcript(folder: Path, session: str, **atlas: object) -> list[str]:
    """The lines of a row between the marks and the question."""
    return by_sample(converted("daicwoz", folder, **atlas))[f"daicwoz-{session}"].problem.splitlines()[1:-1]


def test_the_score_decides_and_a_column_that_contradicts_it_is_told(daicwoz: Path):
    made = converted("daicwoz", daicwoz)
    assert sizes(made) == [3, 1, 2]
    assert [labels(made, split) for split in made.rows] == [
        {"no depression": 1, "depression": 2},
        {"no depression": 1},
        {"depression": 1, "no depression": 1},
    ]
    assert made.findings == ["Session 409: score 10, but PHQ8_Binary 0; the score was taken."]
    by_column = converted("daicwoz", daicwoz, corpora={"label": "binary"})
    assert labels(by_column, "train") == {"no depression": 2, "depression": 1}


def test_a_transcript_starts_with_the_agent_and_loses_marks_and_empty_lines(daicwoz: Path):
    assert transcript(daicwoz, "300") == [
        "Ellie: so how are you doing today",
        "Participant: my secret is 300",
        "Participant: <laughter> no",
        "Participant: somebody comes in",
        "Ellie: bye",
    ]


def test_a_session_without_the_agent_keeps_all_lines(daicwoz: Path):
    assert transcript(daicwoz, "451")[:2] == ["Participant: is this on", "Participant: my secret is 451"]


def test_lines_of_an_interruption_are_left_out(daicwoz: Path):
    assert transcript(daicwoz, "373") == [
        "Ellie: so how are you doing today",
        "Participant: my secret is 373",
        "Participant: <laughter> no",
        "Ellie: bye",
    ]


def test_the_participant_alone(daicwoz: Path):
    kept = transcript(daicwoz, "300", corpora={"participant_only": True})
    assert kept == ["Participant: my secret is 300", "Participant: <laughter> no", "Participant: somebody comes in"]
    assert any(
        "Ellie" not in rule and "left out" in rule for rule in converted("daicwoz", daicwoz, corpora={"participant_only": True}).rules
    )


def test_sound_is_attached_where_there_is_any(daicwoz: Path):
    row = by_sample(converted("daicwoz", daicwoz))["daicwoz-487"]
    assert row.media == {"audio": ((daicwoz / "487_P" / "487_AUDIO.wav").absolute(),)}
    for path in daicwoz.glob("*/*.wav"):
        path.unlink()
    assert not by_sample(converted("daicwoz", daicwoz))["daicwoz-487"].media


def test_test_sessions_that_only_one_file_names_are_told(daicwoz: Path):
    path = daicwoz / "test_split_Depression_AVEC2017.csv"
    path.write_text(path.read_text() + "999,1\n")
    findings = converted("daicwoz", daicwoz).findings
    assert findings[-1] == "full_test_split.csv and test_split_Depression_AVEC2017.csv differ in sessions 999."


def test_the_side_file_of_macos_in_place_of_a_transcript_is_a_bad_row(daicwoz: Path):
    put(daicwoz / "487_P" / "487_TRANSCRIPT.csv", APPLE_DOUBLE)
    with pytest.raises(DataError, match=r"487_TRANSCRIPT\.csv: is the side file that macOS keeps"):
        converted("daicwoz", daicwoz)
    made = converted("daicwoz", daicwoz, on_bad_row="drop")
    assert (sizes(made), drops(made)) == ([3, 1, 1], {("test", "side file of macOS"): 1})


def test_an_archive_that_was_not_unpacked_is_told(daicwoz: Path):
    (daicwoz / "300_P").rename(daicwoz / "elsewhere")
    put(daicwoz / "300_P.zip", b"PK")
    with pytest.raises(DataError, match=r"holds no 300_TRANSCRIPT\.csv\n\s*unpack 300_P\.zip into a folder 300_P"):
        converted("daicwoz", daicwoz)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("300_P/300_TRANSCRIPT.csv", "my secret", "my secret <video>"),
        ("300_P/300_TRANSCRIPT.csv", "\tParticipant\tmy secret", "my secret"),
        ("300_P/300_TRANSCRIPT.csv", "my secret", "my secret \t"),
        ("373_P/373_TRANSCRIPT.csv", "5\t6\tParticipant\tmy", "my secret\t6\tParticipant\tmy"),
        ("train_split_Depression_AVEC2017.csv", "300,0,3", "300,0,my secret"),
        ("train_split_Depression_AVEC2017.csv", "300,0,3", "300,0,99"),
        ("train_split_Depression_AVEC2017.csv", "300,0,3", "300,my secret,3"),
    ],
)
def test_no_error_says_what_was_said(daicwoz: Path, file: str, old: str, new: str):
    path = daicwoz / file
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        converted("daicwoz", daicwoz)
    made = converted("daicwoz", daicwoz, on_bad_row="drop")
    assert len(made.drops) == 1
    for told in (str(caught.value), repr(caught.value), repr(made.drops), repr(made.findings), repr(made.rules)):
        assert "secret" not in told


def test_bytes_that_are_no_text_are_told_by_line_alone(daicwoz: Path):
    path = daicwoz / "300_P" / "300_TRANSCRIPT.csv"
    path.write_bytes(path.read_bytes().replace(b"my secret", b"my secret \xff"))
    with pytest.raises(DataError, match=r"300_TRANSCRIPT\.csv, line 4: byte 0xff is not UTF-8") as caught:
        converted("daicwoz", daicwoz)
    assert "secret" not in str(caught.value)
