"""A table's bytes depend on its clips alone; what is written appears whole or not at all."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hba_ray.descriptors.pools import TRIES, Worker
from hba_ray.descriptors.store import ROW_GROUP, SCHEMAS, Table, read_frames, write_frames
from hba_ray.errors import DataError

ROOT = Path(__file__).parents[2]


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def row(number: int) -> dict:
    if number % 7 == 0:
        return {"reason": "corrupt audio", "message": f"clip {number} is damaged"}
    values = np.random.default_rng(number).standard_normal(6373).astype(np.float32)
    return {"seconds": number / 10, "frames": 1, "peak": 0.5, "functionals": values}


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.parquet"))}


def filled(folder: Path, numbers, folds=()) -> Table:
    table = Table(folder, "functionals")
    for done, number in enumerate(numbers):
        if done in folds:
            table.fold()
        table.add(key(number), row(number))
    table.fold()
    return Table(folder, "functionals")


def test_order_interruptions_and_repetitions_leave_no_trace(tmp_path: Path):
    once = filled(tmp_path / "once", range(60))
    often = filled(tmp_path / "often", [*reversed(range(60)), 3, 4, 5], folds=(1, 20, 21, 59, 61))
    assert files(once.folder) == files(often.folder)
    assert len(files(once.folder)) > 10
    assert not list(often.folder.glob("pending/**/*.parquet"))


def test_vectors_come_back_bit_by_bit_in_the_order_asked_for(tmp_path: Path):
    table = filled(tmp_path, range(40))
    asked = [key(5), None, key(7), key(999), key(39), key(5)]
    values = table.read(asked, "functionals")
    assert [value is None for value in values] == [False, True, True, True, False, False]
    assert values[0].dtype == np.float32 and np.array_equal(values[0], row(5)["functionals"])
    assert np.array_equal(values[4], row(39)["functionals"]) and np.array_equal(values[5], values[0])


def test_a_clip_that_cannot_be_described_is_known_with_its_reason(tmp_path: Path):
    known = filled(tmp_path, range(15)).known()
    assert len(known) == 15
    assert known[key(14)] == ("corrupt audio", "clip 14 is damaged")
    assert known[key(13)] == (None, None)


def test_a_batch_reads_only_the_row_groups_of_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = [number for number in range(1, 2000) if key(number)[0] == "a" and number % 7][: 2 * ROW_GROUP + 3]
    table = filled(tmp_path, numbers)
    clips = sorted(key(number) for number in numbers)
    read = []
    file = table._files["a"]
    assert file.num_row_groups == 3
    original = file.read_row_group
    monkeypatch.setattr(file, "read_row_group", lambda group, **rest: read.append(group) or original(group, **rest))
    table.read([clips[0], clips[1], clips[-1]], "functionals")
    assert read == [0, 2]


def test_a_draft_is_never_read_and_is_cleared_away(tmp_path: Path):
    table = Table(tmp_path, "functionals")
    table.add(key(1), row(1))
    draft = tmp_path / "pending" / key(2)[0] / f".{key(2)}.parquet.abc.draft"
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_bytes(b"half a row")
    table.fold()
    assert list(Table(tmp_path, "functionals").known()) == [key(1)]
    assert not draft.exists()


def test_a_clip_that_takes_its_process_with_it_every_time_becomes_a_bad_one(tmp_path: Path):
    class Deadly:
        def describe(self, clip, *, where, keep=None):
            raise KeyboardInterrupt  # as near to a crash as a test may come

    table = Table(tmp_path, "functionals")
    worker = Worker(Deadly, table, keep=False)
    for _ in range(TRIES):
        with pytest.raises(KeyboardInterrupt):
            worker.describe(key(1), b"", "row 1")
    assert worker.describe(key(1), b"", "row 1").reason == "extractor died"
    with pytest.raises(KeyboardInterrupt):
        worker.describe(key(2), b"", "row 2")
    table.fold()
    assert table.begin(key(2)) == 1, "another run may try again"
    assert list(Table(tmp_path, "functionals").known()) == [key(1)]


def test_a_damaged_file_is_named(tmp_path: Path):
    table = filled(tmp_path, range(8))
    file = sorted(table.folder.glob("*.parquet"))[0]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{file.name}: is damaged"):
        Table(tmp_path, "functionals").known()


@pytest.mark.parametrize(
    "read",
    [
        lambda table: table.known(),
        lambda table: table.columns(["peak"]),
        lambda table: table.holds(key(1)),
        lambda table: table.read([key(1)], "peak"),
    ],
)
def test_a_file_whose_rows_are_damaged_and_whose_end_is_not_is_named(tmp_path: Path, read):
    table = filled(tmp_path, [1])
    (file,) = table.folder.glob("*.parquet")
    held = file.read_bytes()
    length = int.from_bytes(held[-8:-4], "little") + 8
    file.write_bytes(held[:4] + b"\xff" * (len(held) - 4 - length) + held[-length:])
    with pytest.raises(DataError, match=f"{file.name}: is damaged"):
        read(Table(tmp_path, "functionals"))


def test_a_column_that_the_table_has_not_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="loudness"):
        Table(tmp_path, "pose").add(key(1), {"loudness": 1.0})


def test_frames_are_kept_exactly(tmp_path: Path):
    columns = {"values": np.random.default_rng(0).standard_normal((300, 7)).astype(np.float32), "detected": np.ones((300, 4), np.float32)}
    write_frames(tmp_path / "clip.parquet", columns)
    read = read_frames(tmp_path / "clip.parquet")
    assert all(np.array_equal(read[name], columns[name]) for name in columns) and read.keys() == columns.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["clip.parquet"]


def test_every_table_has_the_columns_that_say_what_a_row_is():
    assert all(schema.names[:5] == ["clip", "reason", "message", "seconds", "frames"] for schema in SCHEMAS.values())


WRITER = """
import json, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from hba_ray.descriptors.pools import TRIES, Worker
from hba_ray.descriptors.store import Table
from tests.descriptors.test_store import key, row
table = Table(Path({folder!r}), "functionals")
table.fold()
known = table.known()
added = open({log!r}, "a")
for number in range(150):
    if key(number) not in known:
        table.add(key(number), row(number))
        added.write(json.dumps(number) + "\\n")
        added.flush()
table.fold()
"""


@pytest.mark.chaos
@pytest.mark.parametrize("moment", [0.02, 0.15, 0.4])
def test_killed_and_started_again_it_writes_no_row_twice_and_ends_with_the_same_bytes(tmp_path: Path, moment: float):
    log = tmp_path / "added"
    script = WRITER.format(root=str(ROOT), folder=str(tmp_path / "killed"), log=str(log))
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = [json.loads(line) for line in log.read_text().splitlines() if line.strip().isdigit()]
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    added = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(added) - len(set(added)) == 0, "a row that was there was written again"
    assert added[: len(before)] == before
    assert files(tmp_path / "killed") == files(filled(tmp_path / "whole", range(150)).folder)
