from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.convert.base import Sieve
from hba_ray.convert.media import first_folder
from hba_ray.convert.tables import column, identifier, number, read_json_lines, read_table, read_text
from hba_ray.data.atlas import Drop
from hba_ray.errors import DataError


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("\ufeffname\nAnn\n".encode())
    assert [record for _, record in read_table(tmp_path / "a.csv", ["name"])] == [{"name": "Ann"}]


def test_a_row_is_placed_by_its_last_line_and_a_break_inside_a_quote_is_kept(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b'name,said\r\nAnn,"one\ntwo"\r\nBen,three\r\n')
    rows = list(read_table(tmp_path / "a.csv", ["name"]))
    assert [where.rsplit(", ", 1)[1] for where, _ in rows] == ["line 3", "line 4"]
    assert rows[0][1]["said"] == "one\ntwo"


def test_a_row_of_another_length_has_no_values(tmp_path: Path):
    (tmp_path / "a.csv").write_text("name,said\nAnn\nBen,two,three\n")
    assert [record for _, record in read_table(tmp_path / "a.csv", ["name"])] == [{}, {}]


def test_a_folder_is_not_read_as_a_file(tmp_path: Path):
    with pytest.raises(DataError, match="is a folder, not a file"):
        read_text(tmp_path)


@pytest.mark.parametrize(("value", "reason"), [(None, "missing value"), (3, "wrong type"), ("\t", "empty text"), ("\udc00", "not UTF-8")])
def test_a_value_that_is_no_text_is_refused(value: object, reason: str):
    with pytest.raises(DataError) as caught:
        column({"name": value}, "name", "row 1")
    assert (caught.value.where, caught.value.reason) == ("row 1", reason)


def test_a_sieve_drops_only_data_errors_and_only_where_asked_to():
    bad = DataError("row 1", "is bad", reason="bad")
    with pytest.raises(DataError), Sieve("own", "fail").row():
        raise bad
    sieve = Sieve("own", "drop")
    with sieve.row("test"):
        raise bad
    assert sieve.drops == [Drop("test", "own", "row 1", "bad")]
    with pytest.raises(KeyError), sieve.row():
        raise KeyError("a defect of the program")


def test_the_first_folder_that_is_there_is_taken(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    assert first_folder(tmp_path, ("a", "b", "c")) == tmp_path / "b"
    assert first_folder(tmp_path, ("a",)) is None


def test_names_of_columns_lose_their_spaces_and_may_be_others(tmp_path: Path):
    (tmp_path / "a.csv").write_text(" participant_ID ,PHQ_Score\r\n0300,3\r\n")
    records = [record for _, record in read_table(tmp_path / "a.csv", [("Participant_ID", "participant_ID"), ("PHQ8_Score", "PHQ_Score")])]
    assert records == [{"Participant_ID": "0300", "PHQ8_Score": "3"}]
    with pytest.raises(DataError, match=r"line 1: column 'x' is missing, also as y, z"):
        list(read_table(tmp_path / "a.csv", [("x", "y", "z")]))


def test_in_a_table_by_tabs_a_quote_is_a_sign_as_any_other(tmp_path: Path):
    (tmp_path / "a.csv").write_text('speaker\tvalue\nEllie\t"so she said\nEllie\tyes\n')
    assert [record["value"] for _, record in read_table(tmp_path / "a.csv", ["value"], delimiter="\t")] == ['"so she said', "yes"]


def test_a_long_cell_is_read(tmp_path: Path):
    (tmp_path / "a.csv").write_text("value\n" + "word " * 60_000)
    assert [len(record["value"]) for _, record in read_table(tmp_path / "a.csv", ["value"])] == [300_000]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text("label,said,label\nrude,one,polite\n")
    with pytest.raises(DataError, match="line 1: column 'label' is there twice"):
        list(read_table(tmp_path / "a.csv", ["label"]))
    assert len(list(read_table(tmp_path / "a.csv", ["said"]))) == 1


def test_the_encoding_of_a_file_can_be_named(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("Caf\u00e9".encode("latin-1"))
    assert read_text(tmp_path / "a.txt", "latin-1") == "Caf\u00e9"
    with pytest.raises(DataError, match="byte 0xe9 is not UTF-8") as caught:
        read_text(tmp_path / "a.txt")
    assert "GB18030" not in str(caught.value)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "a\0b", "a" * 201, "\u7b2c" * 67])
def test_a_name_that_leads_elsewhere_is_no_identifier(name: str):
    with pytest.raises(DataError, match="'video' is no name of a clip") as caught:
        identifier({"video": name}, "video", "row 1")
    assert caught.value.reason == "bad path"


@pytest.mark.parametrize("name", ["-a_b", "0013", " 0013 ", "12345", "a b's"])
def test_an_identifier_stays_as_it_is(name: str):
    assert identifier({"video": name}, "video", "row 1") == name.strip()


@pytest.mark.parametrize(("value", "found"), [("10", 10), (" 3.5 ", 3.5), (7, 7), ("1e1", 10)])
def test_numbers_stand_in_files_as_such_or_as_text(value: object, found: float):
    assert number(value, "score", "row 1", lowest=0, highest=24) == found


@pytest.mark.parametrize("value", ["ten", "", None, "nan", "inf", True, [1], 25, "-1", "9" * 5000])
def test_what_is_no_number_in_range_is_refused_and_not_repeated(value: object):
    with pytest.raises(DataError, match=r"^row 1: 'score' (is|lies)") as caught:
        number(value, "score", "row 1", lowest=0, highest=24)
    assert "ten" not in str(caught.value)
    assert "999" not in str(caught.value)


def test_json_lines_are_numbered_and_empty_ones_passed_over(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"a": 1}\n\n{"a": "\u2028"}\r\n', "utf-8")
    assert [(place, value["a"]) for place, _, value in read_json_lines(tmp_path / "a.json")] == [(1, 1), (3, "\u2028")]
    (tmp_path / "a.json").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        list(read_json_lines(tmp_path / "a.json"))
