from __future__ import annotations

from pathlib import Path

import pytest

from hba_ray.convert.base import Sieve
from hba_ray.convert.media import first_folder
from hba_ray.convert.tables import column, read_table, read_text
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
