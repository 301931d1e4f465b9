"""What we have written comes back as it was; what someone has damaged is named with its file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from hba_ray.errors import DataError
from hba_ray.store.files import MEMORY, file_digest, from_json, read_parquet

KIND = TypeAdapter(dict[str, int])


def test_what_was_written_comes_back() -> None:
    text = KIND.dump_json({"rows": 3}).decode()
    assert from_json(KIND, text, where="x", what="no counts", way_out="") == {"rows": 3}


@pytest.mark.parametrize(
    ("text", "says"), [('{"rows": "many"}', "rows: "), ("", "Invalid JSON"), ('{"rows": 3', "Invalid JSON"), ("[]", "an object")]
)
def test_what_is_damaged_is_named(text: str, says: str) -> None:
    with pytest.raises(DataError) as refused:
        from_json(KIND, text, where="counts.json", what="no counts", way_out="count again")
    assert (refused.value.where, refused.value.reason, refused.value.way_out) == ("counts.json", "no counts", "count again")
    assert refused.value.what.startswith("no counts: ") and says in refused.value.what


@pytest.mark.parametrize("damage", ["half", "empty", "garbage", "gone"])
def test_a_table_that_is_damaged_is_named_with_the_step_to_do_again(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "predictions.parquet"
    pq.write_table(pa.table({"sample_id": ["a", "b"], "correct": [True, False]}), file)
    assert read_parquet(file, ("correct",)).to_pydict() == {"correct": [True, False]}
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "garbage": b"PAR1" + bytes(200)}[damage])
    with pytest.raises(DataError, match="do the step again") as refused:
        read_parquet(file)
    assert refused.value.where == str(file)


def test_a_table_of_other_columns_is_refused(tmp_path: Path) -> None:
    file, wanted = tmp_path / "index.parquet", pa.schema([("row", pa.int64())])
    pq.write_table(pa.table({"row": pa.array([1], pa.int64())}), file)
    assert read_parquet(file, schema=wanted).num_rows == 1
    pq.write_table(pa.table({"line": ["a"]}), file)
    with pytest.raises(DataError, match=r"its columns are \['line'\], not \['row'\]"):
        read_parquet(file, schema=wanted)


def test_a_folder_in_place_of_the_memory_is_named(tmp_path: Path):
    (tmp_path / "weights").write_bytes(b"weights")
    (tmp_path / MEMORY).mkdir()
    with pytest.raises(DataError, match=r"digests\.jsonl: is a folder, a pipe or a device, and no file\n  move it away"):
        file_digest(tmp_path / "weights", memory=tmp_path)
